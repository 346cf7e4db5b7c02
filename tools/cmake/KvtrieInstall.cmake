# SPDX-License-Identifier: Apache-2.0
# Copyright The kvtrie authors

# Install rules, and the package that find_package(kvtrie) finds: it offers kvtrie::worker.

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

foreach(program IN ITEMS kvtried kvtrie kvtrie-replay kvtrie-engine kvtrie-bench)
  if(TARGET ${program})
    install(TARGETS ${program} RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
  endif()
endforeach()

# Man pages, completions and the schemas of kvtrie's JSON.
if(TARGET kvtrie-manual)
  set(manual "${PROJECT_BINARY_DIR}/manual")
  install(FILES "${manual}/kvtrie.1" DESTINATION "${CMAKE_INSTALL_MANDIR}/man1")
  install(FILES "${manual}/kvtried.8" DESTINATION "${CMAKE_INSTALL_MANDIR}/man8")
  install(FILES "${manual}/kvtrie" "${manual}/kvtried"
    DESTINATION "${CMAKE_INSTALL_DATADIR}/bash-completion/completions")
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/docs/json-schema" DESTINATION "${CMAKE_INSTALL_DATADIR}/kvtrie")
endif()

# kvtrie-llama and kvtrie-make-model belong to the llama.cpp of the build tree; this finds the program's own.
if(TARGET kvtrie_llama_preload)
  set_target_properties(kvtrie_llama_preload PROPERTIES INSTALL_RPATH "$ORIGIN")
  install(TARGETS kvtrie_llama_preload LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
endif()

get_target_property(kvtrie_worker_type kvtrie_worker TYPE)
if(kvtrie_worker_type STREQUAL "SHARED_LIBRARY")
  set(kvtrie_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/kvtrie")
  install(TARGETS kvtrie_worker EXPORT kvtrieTargets
    LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
    FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  install(EXPORT kvtrieTargets NAMESPACE kvtrie:: DESTINATION "${kvtrie_package_dir}")
  configure_package_config_file("${CMAKE_CURRENT_LIST_DIR}/kvtrieConfig.cmake.in"
    "${PROJECT_BINARY_DIR}/kvtrieConfig.cmake" INSTALL_DESTINATION "${kvtrie_package_dir}")
  write_basic_package_version_file("${PROJECT_BINARY_DIR}/kvtrieConfigVersion.cmake"
    COMPATIBILITY SameMinorVersion)
  install(FILES "${PROJECT_BINARY_DIR}/kvtrieConfig.cmake"
    "${PROJECT_BINARY_DIR}/kvtrieConfigVersion.cmake" DESTINATION "${kvtrie_package_dir}")
endif()
