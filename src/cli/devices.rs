//! `harmonica devices`

use comfy_table::{Table, presets};
use serde_json::json;

use super::{Context, error::CliError, options::print_json};
use crate::device::{AdapterReport, Engine, adapters};

const EXAMPLES: &str = "\
Examples:
  harmonica devices                     the arrow marks what --device auto takes
  harmonica sample --device vulkan      the best adapter of one interface
  harmonica sample --device 1           an adapter by its number in the list";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args, context: &Context) -> Result<(), CliError> {
    let found = adapters();
    let cpu = Engine::cpu();
    let auto_is_cpu = found.iter().all(|a| !a.auto);
    if args.json {
        let cpu = json!({
            "device": cpu.report().device,
            "auto": auto_is_cpu,
            "bf16_units": cpu.hardware().bf16_units,
        });
        print_json(&json!({ "adapters": found, "cpu": cpu }));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "",
        "device",
        "name",
        "vendor",
        "api",
        "type",
        "driver",
        "buffer",
        "bindings",
        "workgroup",
        "f16",
        "subgroups",
        "--dtype auto",
    ]);
    for adapter in &found {
        table.add_row(row(adapter));
    }
    let mark = if auto_is_cpu { "→" } else { "" };
    table.add_row([
        mark,
        "cpu",
        &cpu.report().device,
        "",
        "flex",
        "cpu",
        "",
        "",
        "",
        "",
        "",
        "",
        if cpu.hardware().bf16_units {
            "bf16"
        } else {
            "f32"
        },
    ]);
    out!("{table}");
    context.say("→ is what --device auto takes; software adapters run only when asked for");
    if found.is_empty() {
        context.say(
            "no adapter found: install the GPU's driver (Debian and Ubuntu: mesa-vulkan-drivers) to use one",
        );
    }
    Ok(())
}

fn yes(flag: bool) -> &'static str {
    if flag { "yes" } else { "no" }
}

fn row(a: &AdapterReport) -> [String; 13] {
    [
        if a.auto { "→" } else { "" }.into(),
        a.index.to_string(),
        a.name.clone(),
        a.vendor.clone(),
        a.api.to_string(),
        a.kind.into(),
        a.driver.clone(),
        format!("{:.1} GiB", a.max_buffer_bytes as f64 / (1u64 << 30) as f64),
        a.max_storage_buffers.to_string(),
        format!("{} · {} KiB", a.max_workgroup, a.workgroup_bytes / 1024),
        yes(a.f16).into(),
        yes(a.subgroups).into(),
        if a.matrix_units { "f16" } else { "f32" }.into(),
    ]
}
