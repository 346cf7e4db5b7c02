// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_line.h"

#include "tools/kvtrie/command_admin.h"
#include "tools/kvtrie/command_destroy.h"
#include "tools/kvtrie/command_diff_dumps.h"
#include "tools/kvtrie/command_geometry.h"
#include "tools/kvtrie/command_namespaces.h"
#include "tools/kvtrie/command_page.h"
#include "tools/kvtrie/command_pins.h"
#include "tools/kvtrie/command_save.h"
#include "tools/kvtrie/command_status.h"
#include "tools/kvtrie/command_tree.h"
#include "tools/kvtrie/command_verify.h"
#include "tools/kvtrie/command_workers.h"

namespace kvtrie::inspect {

CommandLine::CommandLine()
    : app("kvtrie: looks into the prefix cache that inference processes of this host share", "kvtrie") {
  app.set_version_flag("--version", "kvtrie " KVTRIE_VERSION);
  app.add_option("--cache", cache, "Cache to look at; may be left out when the host has one")->type_name("NAME");
  app.add_option("--dir", directory, "Directory of the caches' sockets and locks, as given to kvtried")
      ->type_name("DIR");
  app.add_flag("--json", json, "Answer in JSON (docs/kvtrie-json.md)");
  app.fallthrough();  // so the options above may stand behind a command too
  app.require_subcommand(1);
  app.footer(exit_table_text() +
             "Commands that only look map the segment read-only; they need no coordinator, and dead segments may be "
             "looked at too.");
  commands = {add_status_command(app),   add_workers_command(app), add_namespaces_command(app),
              add_tree_command(app),     add_page_command(app),    add_verify_command(app),
              add_pins_command(app),     add_pin_command(app),     add_unpin_command(app),
              add_evict_command(app),    add_flush_command(app),   add_drain_command(app),
              add_stop_command(app),     add_save_command(app),    add_geometry_command(app),
              add_destroy_command(app),  add_diff_dumps_command(app)};
}

}  // namespace kvtrie::inspect
