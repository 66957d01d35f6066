//! The examination for people.

use super::{Examination, Tried};
use crate::device::{AdapterReport, Engine};

/// Column of the text beside a section's name.
const NAME: usize = 10;

/// Lines of one kind, cells of which stand below each other.
struct Section {
    name: &'static str,
    /// What stands in front of a line, if anything, and its cells.
    lines: Vec<(&'static str, Vec<String>)>,
}

impl Section {
    fn new(name: &'static str) -> Self {
        let lines = Vec::new();
        Self { name, lines }
    }

    fn line<const N: usize>(&mut self, cells: [String; N]) {
        self.lines.push(("", cells.into()));
    }

    fn print(&self) {
        let mut widths = Vec::new();
        for (_, cells) in &self.lines {
            for (column, cell) in cells.iter().enumerate() {
                let width = cell.chars().count();
                match widths.get_mut(column) {
                    Some(widest) => *widest = width.max(*widest),
                    None => widths.push(width),
                }
            }
        }
        for (place, (mark, cells)) in self.lines.iter().enumerate() {
            let name = if place == 0 { self.name } else { "" };
            let cells = cells.iter().zip(&widths);
            let cells: Vec<String> = cells.map(|(c, width)| format!("{c:width$}")).collect();
            let line = format!("{name:NAME$}{mark:2}{}", cells.join("  "));
            out!("{}", line.trim_end());
        }
    }
}

/// Prints it; `asked` is what `--device` said.
pub(super) fn print(seen: &Examination, asked: &str) {
    system(seen).print();
    drivers(seen).print();
    adapters(seen).print();
    if let Some(tried) = &seen.device {
        device(tried, asked).print();
        kernels(tried).print();
        speed(tried).print();
    }
    caches(seen).print();
    let findings = &seen.findings;
    if !(findings.problems.is_empty() && findings.advice.is_empty()) {
        out!("");
    }
    for problem in &findings.problems {
        out!("✗ {problem}");
    }
    for advice in &findings.advice {
        out!("· {advice}");
    }
    if findings.problems.is_empty() {
        out!("\nall is well");
    }
}

fn system(seen: &Examination) -> Section {
    let system = &seen.system;
    let memory = match &system.memory {
        Some(memory) => format!(
            ", {} of {} of memory free",
            gigabytes(memory.free_bytes),
            gigabytes(memory.total_bytes)
        ),
        None => String::new(),
    };
    let mut section = Section::new("system");
    section.line([format!(
        "harmonica {} on {} {}, {} threads{memory}",
        env!("CARGO_PKG_VERSION"),
        system.os,
        system.arch,
        system.threads
    )]);
    section
}

fn drivers(seen: &Examination) -> Section {
    let mut section = Section::new("drivers");
    for driver in &seen.drivers.found {
        let (manifest, library) = (&driver.manifest, &driver.library);
        section.line([library.clone(), manifest.display().to_string()]);
    }
    for (name, value) in &seen.drivers.variables {
        section.line([format!("{name}={value}")]);
    }
    section
}

fn adapters(seen: &Examination) -> Section {
    let mut section = Section::new("adapters");
    let mark = |auto: bool| if auto { "→" } else { "" };
    for adapter in &seen.adapters {
        let cells = [
            adapter.index.to_string(),
            adapter.name.clone(),
            adapter.api.to_string(),
            adapter.kind.to_owned(),
            adapter.driver.clone(),
        ];
        section.lines.push((mark(adapter.auto), cells.into()));
    }
    let cpu = Engine::cpu().report().device.clone();
    let cells = vec!["cpu".to_owned(), cpu, "flex".to_owned(), "cpu".to_owned()];
    section.lines.push((mark(seen.auto_is_cpu()), cells));
    section
}

fn device(tried: &Tried, asked: &str) -> Section {
    let mut section = Section::new("device");
    section.line([format!(
        "{} ({}), by --device {asked}",
        tried.report.device, tried.report.backend
    )]);
    if let Some(adapter) = &tried.adapter {
        section.line([limits(adapter)]);
        if adapter.matrix_units {
            section.line(["matrix units: --dtype f16 multiplies by them".to_owned()]);
        }
    }
    if tried.bf16_units {
        section.line(["units for bf16: --dtype bf16 multiplies by them".to_owned()]);
    }
    section
}

fn limits(adapter: &AdapterReport) -> String {
    format!(
        "buffers of {} MiB, {} bindings (8 needed), workgroups of {} (256 needed) with {} KiB (16 needed)",
        adapter.max_buffer_bytes >> 20,
        adapter.max_storage_buffers,
        adapter.max_workgroup,
        adapter.workgroup_bytes >> 10
    )
}

fn kernels(tried: &Tried) -> Section {
    let mut section = Section::new("kernels");
    for check in &tried.kernels {
        let verdict = match &check.difference {
            Ok(difference) => format!("ok, off by {difference:.0e}"),
            Err(_) => "✗".into(),
        };
        section.line([check.kernel.to_owned(), verdict]);
    }
    section
}

fn speed(tried: &Tried) -> Section {
    let mut section = Section::new("speed");
    let Ok(speed) = &tried.speed else {
        section.line(["✗".to_owned()]);
        return section;
    };
    let product = &speed.product;
    section.line([
        format!("product of {0} × {0} × {0}", product.side),
        format!(
            "{} ({}–{}), {:.1} GMACs/s",
            duration(product.median_s),
            duration(product.shortest_s),
            duration(product.longest_s),
            product.macs_per_second() / 1e9
        ),
    ]);
    section.line(match &speed.picture {
        None => [
            "picture".to_owned(),
            "this build brings no model".to_owned(),
        ],
        Some(picture) => {
            let off = match picture.difference_to_cpu {
                Some(off) => format!("; {off:.0e} from the CPU's"),
                None => String::new(),
            };
            [
                format!("picture in {} steps", picture.steps),
                format!(
                    "{}, the first {}{off}",
                    duration(picture.second_s),
                    duration(picture.first_s)
                ),
            ]
        }
    });
    section
}

fn caches(seen: &Examination) -> Section {
    let mut section = Section::new("caches");
    for folder in &seen.caches {
        let path = match &folder.path {
            Some(path) => path.display().to_string(),
            None => "nowhere".into(),
        };
        let entries = match folder.entries {
            None => "not there yet".into(),
            Some(count) => count.to_string(),
        };
        section.line([folder.holds.to_owned(), entries, path]);
    }
    section
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.1} s"),
        s if s >= 0.01 => format!("{:.0} ms", s * 1e3),
        s => format!("{:.1} ms", s * 1e3),
    }
}
