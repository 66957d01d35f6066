//! Rows as JSON, as CSV, and as cells for people: one list of figures for whoever compares and whoever times.

use serde_json::{Map, Value, json};

use super::{Comparison, Row, verdict::thousandths};
use crate::metrics::{median, psnr_from_mse};

/// What a column is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// The pictures.
    Quality,
    /// Work, time and memory.
    Cost,
}

/// A column of a table for people.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    pub title: &'static str,
    pub about: About,
    /// One a row.
    pub cells: Vec<String>,
}

impl Comparison {
    /// Figures of row number `row` under the names that `--json` gives them.
    pub fn json(&self, row: usize) -> Map<String, Value> {
        let Row {
            schedule,
            policy,
            origin,
            steps,
            cur,
            macs_ratio,
            ssim,
            peak_cache_bytes,
            all_features_bytes,
            peak_host_bytes,
            dispatches,
            warnings,
            ..
        } = &self.rows[row];
        let of = &self.rows[row];
        let error = of.error();
        let [fast, slow] = range(&of.seconds);
        let [least, most] = range(&of.speedups);
        let rival = self.rival(row);
        let against = rival.map(|rival| &self.rows[rival.row].schedule);
        let difference = rival.map(|rival| rival.difference);
        let mut figures = Map::new();
        let mut put = |key: &str, value: Value| figures.insert(key.into(), value);
        put("schedule", json!(schedule));
        put("policy", json!(policy));
        put("kind", json!(origin.name()));
        put("steps", json!(steps));
        put("cur", json!(cur));
        put("macs_ratio", json!(macs_ratio));
        put("mse", json!(error.mean));
        put("mse_standard_error", json!(error.standard_error));
        put("mse_median", json!(median(&of.errors)));
        put(
            "mse_max",
            json!(of.errors.iter().copied().fold(0.0, f64::max)),
        );
        put("rival", json!(against));
        put("rival_difference", json!(difference.map(|d| d.mean)));
        put(
            "rival_difference_standard_error",
            json!(difference.and_then(|d| d.standard_error)),
        );
        put("on_front", json!(self.is_on_front(row)));
        put("psnr", json!(psnr_from_mse(error.mean)));
        put("ssim", json!(ssim));
        if !of.true_errors.is_empty() {
            let truth = super::Estimate::of(&of.true_errors);
            put("mse_true", json!(truth.mean));
            put("mse_true_standard_error", json!(truth.standard_error));
        }
        put("seconds", json!(of.seconds.iter().sum::<f64>()));
        put("median_s", json!(median(&of.seconds)));
        put("min_s", json!(fast));
        put("max_s", json!(slow));
        put("speedup", json!(of.speedup()));
        put("speedup_min", json!(least));
        put("speedup_max", json!(most));
        put("efficiency", json!(of.efficiency()));
        put("dispatches_per_run", json!(dispatches));
        put("peak_cache_bytes", json!(peak_cache_bytes));
        put("all_features_bytes", json!(all_features_bytes));
        put("peak_host_bytes", json!(peak_host_bytes));
        put("warnings", json!(warnings));
        figures
    }

    /// All rows as comma-separated values with a header, as RFC 4180 has them: the names and figures of [`Self::json`], empty where
    /// there is none.
    pub fn csv(&self) -> String {
        csv(&(0..self.rows.len())
            .map(|row| self.json(row))
            .collect::<Vec<_>>())
    }

    /// Cells for people. A column that no row has anything for is left out.
    pub fn columns(&self) -> Vec<Column> {
        use About::{Cost, Quality};
        let column = |title, about, cell: &dyn Fn(usize, &Row) -> Option<String>| {
            let cells = self.rows.iter().enumerate();
            let cells: Vec<_> = cells.map(|(row, of)| cell(row, of)).collect();
            let any = cells.iter().any(Option::is_some);
            let text = |cell: Option<String>| cell.unwrap_or_else(|| "–".into());
            any.then(|| Column {
                title,
                about,
                cells: cells.into_iter().map(text).collect(),
            })
        };
        let exact = |of: &Row| of.error().mean == 0.0;
        let unless_exact = |of: &Row, text: String| (!exact(of)).then_some(text);
        let megabytes = |bytes: f64| match bytes < 0.05e6 {
            true => "<0.1".into(),
            false => format!("{:.1}", bytes / 1e6),
        };
        let columns = [
            column("front", Quality, &|row, _| {
                self.is_on_front(row).then(|| "●".into())
            }),
            column("MSE ×1000", Quality, &|_, of| Some(estimate(of.error()))),
            column("median", Quality, &|_, of| {
                unless_exact(of, thousandths(median(&of.errors)))
            }),
            column("worst", Quality, &|_, of| {
                let worst = of.errors.iter().copied().fold(0.0, f64::max);
                unless_exact(of, thousandths(worst))
            }),
            column("against the best rival", Quality, &|row, _| {
                let rival = self.rival(row)?;
                let difference = estimate(rival.difference).replace('-', "−");
                let sign = if rival.difference.mean > 0.0 { "+" } else { "" };
                let name = &self.rows[rival.row].schedule;
                Some(format!("{sign}{difference} {name}"))
            }),
            column("PSNR dB", Quality, &|_, of| {
                unless_exact(of, format!("{:.2}", psnr_from_mse(of.error().mean)))
            }),
            column("SSIM", Quality, &|_, of| Some(format!("{:.4}", of.ssim))),
            column("to the true solution", Quality, &|_, of| {
                let truth = super::Estimate::of(&of.true_errors);
                (!of.true_errors.is_empty()).then(|| estimate(truth))
            }),
            column("steps", Cost, &|_, of| Some(of.steps.to_string())),
            column("CUR %", Cost, &|_, of| {
                Some(format!("{:.1}", 100.0 * of.cur))
            }),
            column("MACs ratio", Cost, &|_, of| {
                Some(format!("{:.2}", of.macs_ratio))
            }),
            column("speed-up", Cost, &|_, of| {
                Some(spread(of.speedup(), &of.speedups, 2))
            }),
            column("efficiency", Cost, &|_, of| {
                Some(format!("{:.2}", of.efficiency()))
            }),
            column("seconds", Cost, &|_, of| {
                Some(spread(median(&of.seconds), &of.seconds, 3))
            }),
            column("dispatches", Cost, &|_, of| {
                of.dispatches
                    .filter(|count| *count > 0)
                    .map(|count| count.to_string())
            }),
            column("cache MB", Cost, &|_, of| {
                (of.peak_cache_bytes > 0).then(|| megabytes(of.peak_cache_bytes as f64))
            }),
            column("of all features", Cost, &|_, of| {
                let share = of.peak_cache_bytes as f64 / of.all_features_bytes.max(1) as f64;
                (share > 0.0).then(|| format!("{:.0} %", 100.0 * share))
            }),
            column("host MB", Cost, &|_, of| {
                of.peak_host_bytes
                    .map(|bytes| format!("{:.0}", bytes as f64 / 1e6))
            }),
        ];
        columns.into_iter().flatten().collect()
    }
}

fn range(values: &[f64]) -> [f64; 2] {
    let fold = |f: fn(f64, f64) -> f64| values.iter().copied().reduce(f).unwrap_or(f64::NAN);
    [fold(f64::min), fold(f64::max)]
}

/// A middle value with its extremes, where those differ.
fn spread(middle: f64, values: &[f64], decimals: usize) -> String {
    let [low, high] = range(values);
    match low < high {
        true => format!("{middle:.decimals$} ({low:.decimals$}–{high:.decimals$})"),
        false => format!("{middle:.decimals$}"),
    }
}

/// Thousandths of an error with its standard error.
fn estimate(of: super::Estimate) -> String {
    match of.standard_error {
        _ if of.mean == 0.0 => "0".into(),
        Some(error) => format!("{} ± {}", thousandths(of.mean), thousandths(error)),
        None => thousandths(of.mean),
    }
}

/// Rows of the same keys as comma-separated values.
fn csv(rows: &[Map<String, Value>]) -> String {
    let Some(first) = rows.first() else {
        return String::new();
    };
    let line = |cells: Vec<String>| cells.join(",") + "\r\n";
    let mut text = line(first.keys().map(|key| quoted(key)).collect());
    for row in rows {
        text += &line(row.values().map(cell).collect());
    }
    text
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => quoted(text),
        Value::Array(values) => {
            let texts = values.iter().filter_map(Value::as_str);
            quoted(&texts.collect::<Vec<_>>().join("; "))
        }
        other => other.to_string(),
    }
}

/// Text that means more than itself in quotes, quotes doubled.
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\r', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::rows, *};

    #[test]
    fn values_with_commas_and_quotes_are_quoted() {
        let mut rows = rows();
        rows.truncate(2);
        rows[1].schedule = "a \"b\", c\nd".into();
        rows[1].warnings = vec!["one, or".into(), "two".into()];
        let text = Comparison::of(rows).csv();
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[0].starts_with("schedule,policy,kind,steps,cur,macs_ratio,mse,"));
        assert!(
            lines[1].starts_with("none,none,uncached,20,0.5,1.0,0.0,"),
            "{text}"
        );
        assert!(lines[2].starts_with("\"a \"\"b\"\", c\nd\","), "{text}");
        assert!(lines[2].ends_with(",\"one, or; two\""), "{text}");
        // An infinite PSNR and an unknown memory are no numbers.
        let figures: Vec<&str> = lines[1].split(',').collect();
        let place = |key: &str| lines[0].split(',').position(|name| name == key).unwrap();
        assert_eq!(
            (figures[place("psnr")], figures[place("peak_host_bytes")]),
            ("", "")
        );
        assert_eq!(figures.len(), lines[0].split(',').count());
    }

    #[test]
    fn people_see_the_columns_that_hold_something() {
        let mut rows = rows();
        rows[0].speedups = vec![1.0; 3];
        let columns = Comparison::of(rows).columns();
        let of = |title: &str| columns.iter().find(|column| column.title == title);
        assert!(of("dispatches").is_none() && of("to the true solution").is_none());
        let cells = |title: &str| of(title).unwrap().cells.clone();
        assert_eq!(
            cells("speed-up")[..2],
            ["1.00".to_owned(), "1.75 (1.50–2.00)".into()]
        );
        assert_eq!(cells("front"), ["●", "●", "–", "●", "●", "–"]);
        let rivals = cells("against the best rival");
        assert_eq!(rivals[0], "–");
        assert_eq!(rivals[1], "−3.00 ± 0.41 steps:10");
        assert_eq!(rivals[2], "+18.00 ± 3.89 learned:2");
        assert_eq!(cells("MSE ×1000")[0], "0");
        assert_eq!(cells("PSNR dB")[0], "–");
    }

    #[test]
    fn json_says_whom_a_row_is_held_against() {
        let of = Comparison::of(rows());
        let row = of.json(1);
        assert_eq!(
            (&row["rival"], &row["on_front"]),
            (&json!("steps:10"), &json!(true))
        );
        assert!(row["rival_difference"].as_f64().unwrap() < 0.0);
        assert_eq!(
            (&row["speedup_min"], &row["speedup_max"]),
            (&json!(1.5), &json!(2.0))
        );
        assert_eq!(row["efficiency"], json!(1.75 / 2.0));
        assert_eq!(
            (&of.json(4)["rival"], &row["kind"]),
            (&Value::Null, &json!("learned"))
        );
    }
}
