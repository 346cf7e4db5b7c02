# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors

# How every target of the tree is made. A folder's CMakeLists.txt lists names and calls these:
#
#   kvtrie_add_library(NAME [SHARED] [UNITY] SOURCES a.cc... HEADERS a.h... [C_HEADERS b.h...]
#                      [CXX_HEADERS c.hpp...] DEPS targets...)
#   kvtrie_add_program(NAME SOURCES main.cc... DEPS targets...)
#   kvtrie_add_test(NAME SOURCES a_test.cc... DEPS targets... LABELS unit [TIMEOUT seconds]
#                   [PROGRAMS kvtried...] [SERIAL] [UNITY] [DEFINITIONS X=1...])
#   kvtrie_add_script_test(NAME COMMAND cmd args... LABELS unit [TIMEOUT seconds] [SERIAL])
#
# A library without sources becomes an interface library, a program or test without sources is left
# out; so a new folder can be listed before its first source. A listed file that is not there yet
# fails when its target is built, not at configuring, so that the other targets can be worked on.

include(GNUInstallDirs)

# Requirements that must be equal in every translation unit, since headers depend on them.
add_library(kvtrie_options INTERFACE)
target_compile_features(kvtrie_options INTERFACE cxx_std_20)
if(KVTRIE_DEV)
  target_compile_definitions(kvtrie_options INTERFACE KVTRIE_DEV=1)
endif()
if(KVTRIE_SANITIZE)
  target_compile_options(kvtrie_options INTERFACE
    -fsanitize=${KVTRIE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(kvtrie_options INTERFACE -fsanitize=${KVTRIE_SANITIZE})
  if(KVTRIE_SANITIZE MATCHES "thread")
    target_compile_definitions(kvtrie_options INTERFACE KVTRIE_TSAN=1)
  endif()
endif()

# -Wno-restrict: g++ 12 warns falsely about std::string at -O3 (GCC bug 105651).
add_library(kvtrie_warnings INTERFACE)
target_compile_options(kvtrie_warnings INTERFACE
  -Wall -Wextra -Wpedantic -Wconversion -Wshadow
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict> $<$<BOOL:${KVTRIE_WERROR}>:-Werror>)
if(KVTRIE_SANITIZE AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # It warns falsely about std::regex then (GCC bug 105562).
  target_compile_options(kvtrie_warnings INTERFACE -Wno-maybe-uninitialized)
endif()

function(kvtrie_allow_missing)
  foreach(file IN LISTS ARGN)
    cmake_path(ABSOLUTE_PATH file BASE_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}")
    if(NOT EXISTS "${file}")
      message(STATUS "kvtrie: ${file} is listed but not there")
      set_source_files_properties("${file}" PROPERTIES GENERATED TRUE)
    endif()
  endforeach()
endfunction()

function(kvtrie_set_up_target name)
  set_target_properties(${name} PROPERTIES
    CXX_EXTENSIONS OFF
    C_EXTENSIONS OFF
    POSITION_INDEPENDENT_CODE ON
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    BUILD_RPATH_USE_ORIGIN ON
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin"
    LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/lib"
    ARCHIVE_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/lib")
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE $<BUILD_INTERFACE:kvtrie_warnings>)
endfunction()

# One translation unit a header without a source file of its name (which includes it first, tests/layering_test): it must
# compile with nothing included before it. Sanitizers see nothing there.
function(kvtrie_check_headers name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "UNITY" "" "HEADERS;C_HEADERS;DEPS")
  if(NOT KVTRIE_BUILD_TESTS OR KVTRIE_SANITIZE OR NOT (arg_HEADERS OR arg_C_HEADERS))
    return()
  endif()
  set(units)
  foreach(language IN ITEMS cc c)
    set(headers "${arg_HEADERS}")
    if(language STREQUAL "c")
      set(headers "${arg_C_HEADERS}")
    endif()
    foreach(header IN LISTS headers)
      cmake_path(ABSOLUTE_PATH header BASE_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}")
      string(REGEX REPLACE "\\.h$" ".cc" source "${header}")
      if(EXISTS "${source}" AND NOT arg_UNITY)
        continue()
      endif()
      cmake_path(RELATIVE_PATH header BASE_DIRECTORY "${PROJECT_SOURCE_DIR}")
      string(REPLACE "/" "_" stem "${header}")
      set(unit "${CMAKE_CURRENT_BINARY_DIR}/headers/${stem}.${language}")
      file(CONFIGURE OUTPUT "${unit}" @ONLY
           CONTENT "#include \"${header}\"\ntypedef int kvtrie_unit_is_not_empty;\n")
      list(APPEND units "${unit}")
    endforeach()
  endforeach()
  if(NOT units)
    return()
  endif()
  add_library(${name}_headers OBJECT ${units})
  kvtrie_set_up_target(${name}_headers)
  set_target_properties(${name}_headers PROPERTIES C_STANDARD 99)
  target_compile_options(${name}_headers PRIVATE -g0)  # nothing here runs
  target_link_libraries(${name}_headers PRIVATE kvtrie_options ${arg_DEPS})
endfunction()

# UNITY: eight sources are compiled at a time, since what they include costs more than they do.
function(kvtrie_unite name)
  set_target_properties(${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
endfunction()

function(kvtrie_add_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "SHARED;UNITY" "" "SOURCES;HEADERS;C_HEADERS;CXX_HEADERS;DEPS")
  string(REGEX REPLACE "^kvtrie_" "" short "${name}")
  kvtrie_allow_missing(${arg_SOURCES} ${arg_HEADERS} ${arg_C_HEADERS} ${arg_CXX_HEADERS})
  if(NOT arg_SOURCES)
    add_library(${name} INTERFACE)
    target_include_directories(${name} INTERFACE "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>")
    target_link_libraries(${name} INTERFACE "$<BUILD_INTERFACE:kvtrie_options>" ${arg_DEPS})
  elseif(arg_SHARED)
    # Its public headers are all that others see: what it is made of stays private.
    add_library(${name} SHARED ${arg_SOURCES} ${arg_HEADERS})
    target_sources(${name} PUBLIC FILE_SET HEADERS BASE_DIRS "${CMAKE_CURRENT_SOURCE_DIR}"
                   FILES ${arg_C_HEADERS} ${arg_CXX_HEADERS})
    kvtrie_set_up_target(${name})
    target_link_libraries(${name} PRIVATE kvtrie_options ${arg_DEPS})
    target_link_options(${name} PRIVATE -Wl,--exclude-libs,ALL)
    if(NOT KVTRIE_SANITIZE)
      target_link_options(${name} PRIVATE -Wl,--no-undefined)
    endif()
    set_target_properties(${name} PROPERTIES EXPORT_NAME ${short}
      VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR})
  else()
    add_library(${name} STATIC ${arg_SOURCES} ${arg_HEADERS} ${arg_C_HEADERS})
    kvtrie_set_up_target(${name})
    target_include_directories(${name} PUBLIC "${PROJECT_SOURCE_DIR}")
    target_link_libraries(${name} PUBLIC kvtrie_options ${arg_DEPS})
  endif()
  add_library(kvtrie::${short} ALIAS ${name})
  set(unity)
  if(arg_UNITY)
    kvtrie_unite(${name})
    set(unity UNITY)
  endif()
  kvtrie_check_headers(${name} ${unity} HEADERS ${arg_HEADERS} C_HEADERS ${arg_C_HEADERS} DEPS ${arg_DEPS})
endfunction()

function(kvtrie_add_program name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;DEPS")
  if(NOT arg_SOURCES)
    message(STATUS "kvtrie: ${name} has no sources yet")
    return()
  endif()
  kvtrie_allow_missing(${arg_SOURCES})
  add_executable(${name} ${arg_SOURCES})
  kvtrie_set_up_target(${name})
  set_target_properties(${name} PROPERTIES
    INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
  target_link_libraries(${name} PRIVATE kvtrie_options ${arg_DEPS} ${CMAKE_DL_LIBS})
endfunction()

# PROGRAMS: built before the test and found by it in KVTRIE_TEST_BIN_DIR; the plugin is in
# KVTRIE_TEST_LIB_DIR (string literals). SERIAL: never beside another test, for timing and for
# effects on the whole machine. UNITY: as for a library.
function(kvtrie_add_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg
    "SERIAL;UNITY" "TIMEOUT" "SOURCES;DEPS;LABELS;PROGRAMS;DEFINITIONS")
  if(NOT arg_SOURCES)
    message(STATUS "kvtrie: ${name} has no sources yet")
    return()
  endif()
  # gtest_discover_tests of CMake 3.25 cannot pass a list on, so it is one label.
  if(NOT arg_LABELS MATCHES "^(unit|crash|stress|e2e|bench-smoke)$")
    message(FATAL_ERROR
      "kvtrie_add_test(${name}): give one of LABELS unit, crash, stress, e2e, bench-smoke")
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  kvtrie_allow_missing(${arg_SOURCES})
  add_executable(${name} ${arg_SOURCES})
  kvtrie_set_up_target(${name})
  set_target_properties(${name} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests/bin")
  target_link_libraries(${name} PRIVATE
    kvtrie_options ${arg_DEPS} GTest::gtest GTest::gmock GTest::gtest_main ${CMAKE_DL_LIBS})
  target_compile_definitions(${name} PRIVATE ${arg_DEFINITIONS})
  if(arg_UNITY)
    kvtrie_unite(${name})
  endif()
  # Lines for backtraces, no variables: a fifth of a test's compile time. The code under test has
  # both.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Debug>:-g1>)
  if(arg_PROGRAMS)
    target_compile_definitions(${name} PRIVATE
      KVTRIE_TEST_BIN_DIR="${PROJECT_BINARY_DIR}/bin"
      KVTRIE_TEST_LIB_DIR="${PROJECT_BINARY_DIR}/lib")
    foreach(program IN LISTS arg_PROGRAMS)
      if(TARGET ${program})
        add_dependencies(${name} ${program})
      endif()
    endforeach()
  endif()
  # All that `ctest -L LABEL` needs: ninja tests_unit.
  if(NOT TARGET tests_${arg_LABELS})
    add_custom_target(tests_${arg_LABELS})
  endif()
  add_dependencies(tests_${arg_LABELS} ${name})
  set(properties TIMEOUT ${arg_TIMEOUT})
  if(arg_LABELS STREQUAL "crash")
    list(APPEND properties COST 50)  # some take a minute: early, so that none runs alone at the end
  endif()
  if(arg_SERIAL)
    list(APPEND properties RUN_SERIAL TRUE)
  endif()
  if(KVTRIE_TRACE)
    list(APPEND properties ENVIRONMENT "KVTRIE_TRACE=${KVTRIE_TRACE}")
  endif()
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60
    PROPERTIES LABELS "${arg_LABELS}" ${properties})
endfunction()

function(kvtrie_add_script_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "SERIAL" "TIMEOUT" "COMMAND;LABELS")
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  add_test(NAME ${name} COMMAND ${arg_COMMAND})
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT}
    RUN_SERIAL $<BOOL:${arg_SERIAL}> SKIP_RETURN_CODE 77)
  if(KVTRIE_TRACE)
    set_property(TEST ${name} APPEND PROPERTY ENVIRONMENT "KVTRIE_TRACE=${KVTRIE_TRACE}")
  endif()
endfunction()
