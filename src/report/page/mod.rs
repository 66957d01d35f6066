//! A comparison as one page that opens from disk: table, front, pictures and schedules.

use std::{borrow::Cow, path::Path};

use image::{RgbImage, imageops};
use serde_json::{Value, json};

use super::{
    ReportError,
    comparison::Comparison,
    picture::{PictureFormat, encode_picture},
};
use crate::{
    graph::Graph,
    schedule::{Reuse, Schedule},
};

/// Pictures are embedded with sides of at most so many pixels.
pub const PICTURE_SIDE: u32 = 256;

/// What a schedule does, step by step.
#[derive(Debug, Clone, PartialEq)]
pub enum StepMap {
    /// A row a step, a character a branch: `#` computed, `.` reused, `~` forecast of earlier features or predictions.
    Table(Vec<String>),
    /// Decided as the run goes on: the branches that may be reused, and the share of images at each step that reused them.
    Decided {
        middle: std::ops::Range<usize>,
        reused: Vec<f64>,
    },
}

impl StepMap {
    /// That of a run; `reused`: the share of images at each step that was decided to reuse.
    pub fn of(reuse: &Reuse, reused: Vec<f64>) -> Self {
        let cell = |table: &Schedule, s: usize, n: usize| match table.computes(s, n) {
            true => '#',
            false if table.runs_network(s) && table.weights(s, n) == [1.0] => '.',
            false => '~',
        };
        match reuse {
            Reuse::AtRunTime(probed) => Self::Decided {
                middle: probed.reused(),
                reused,
            },
            Reuse::Ahead(table) => {
                let row = |s| (0..table.branches()).map(|n| cell(table, s, n)).collect();
                Self::Table((0..table.steps()).map(row).collect())
            }
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Table(rows) => json!({ "rows": rows }),
            Self::Decided { middle, reused } => {
                json!({ "middle": [middle.start, middle.end], "reused": reused })
            }
        }
    }
}

/// What a page shows of a row beside its figures.
#[derive(Debug, Clone)]
pub struct Pictured {
    pub map: StepMap,
    /// Its first images, as many of each row.
    pub pictures: Vec<RgbImage>,
}

/// What is on a page.
#[derive(Debug)]
pub struct Page<'a> {
    pub comparison: &'a Comparison,
    /// One a row.
    pub rows: &'a [Pictured],
    /// What each picture shows, in any characters.
    pub captions: &'a [String],
    /// What was compared, as names and values.
    pub facts: &'a [(&'a str, String)],
    pub graph: &'a Graph,
    /// Whether pictures are a rough preview of latents.
    pub is_preview: bool,
}

/// The page as HTML that needs nothing else: styles, script and pictures are inside. `path` is what errors name.
///
/// # Errors
/// [`ReportError::Draw`] where a picture cannot be encoded.
pub fn page(page: &Page<'_>, path: &Path) -> Result<String, ReportError> {
    let rows = page.rows.iter().enumerate();
    let rows = rows.map(|(number, row)| {
        let mut figures = page.comparison.json(number);
        let pictures = row.pictures.iter().map(|picture| data_uri(picture, path));
        figures.insert("map".into(), row.map.json());
        figures.insert(
            "pictures".into(),
            pictures.collect::<Result<Vec<_>, _>>()?.into(),
        );
        Ok(Value::from(figures))
    });
    let sites = page.graph.sites().iter();
    let sites: Vec<Value> = sites
        .map(|site| json!([site.kind.name(), site.block]))
        .collect();
    let facts: Vec<Value> = page
        .facts
        .iter()
        .map(|fact| json!([fact.0, fact.1]))
        .collect();
    let data = json!({
        "facts": facts, "verdict": page.comparison.verdict(), "captions": page.captions, "sites": sites,
        "preview": page.is_preview, "rows": rows.collect::<Result<Vec<Value>, ReportError>>()?,
    });
    // The data goes in last: it may hold anything, the marks of the other parts too.
    Ok(include_str!("page.html")
        .replace("/* STYLE */", include_str!("page.css"))
        .replace("/* SCRIPT */", include_str!("page.js"))
        .replace("/* DATA */", &in_script(&data)))
}

/// JSON that no parser of HTML takes for the end of the script or the start of anything.
fn in_script(data: &Value) -> String {
    // Outside of strings JSON has none of these.
    data.to_string()
        .replace('&', "\\u0026")
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
}

fn data_uri(picture: &RgbImage, path: &Path) -> Result<String, ReportError> {
    let (width, height) = picture.dimensions();
    let largest = width.max(height);
    let fits = match largest > PICTURE_SIDE {
        false => Cow::Borrowed(picture),
        true => {
            let side = |side: u32| (side * PICTURE_SIDE / largest).max(1);
            let filter = imageops::FilterType::Triangle;
            Cow::Owned(imageops::resize(picture, side(width), side(height), filter))
        }
    };
    let png =
        encode_picture(&fits, PictureFormat::Png, &[]).map_err(|message| ReportError::Draw {
            path: path.into(),
            message,
        })?;
    Ok(format!("data:image/png;base64,{}", base64(&png)))
}

/// RFC 4648's base64, padded.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |place: usize| u32::from(chunk.get(place).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            match place <= chunk.len() {
                true => text.push(DIGITS[(bits >> (18 - 6 * place)) as usize & 63].into()),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        graph::of_blocks,
        policy::Origin,
        report::comparison::Row,
        schedule::{Forecast, Probed},
    };

    /// RFC 4648, section 10.
    #[test]
    fn base64_is_that_of_the_rfc() {
        let cases = [
            "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy",
        ];
        for (length, expected) in cases.into_iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..length]), expected);
        }
        assert_eq!(base64(&[255, 254, 253]), "//79");
    }

    fn graph() -> Graph {
        of_blocks(3)
    }

    #[test]
    fn maps_tell_reuse_from_forecasts() {
        let table = || Schedule::from_rule(4, 2, |s, n| s % 2 == 0 || (s == 1 && n == 1)).unwrap();
        let map = |table: Schedule| StepMap::of(&table.into(), Vec::new());
        let rows = |text: &str| StepMap::Table(text.split(' ').map(Into::into).collect());
        assert_eq!(map(table()), rows("## .# ## .."));
        let features = table().with_reads(|s, _| match s {
            3 => vec![1.5, -0.5],
            _ => Vec::new(),
        });
        assert_eq!(map(features.unwrap()), rows("## .# ## ~~"));
        let steps = table().with_forecast(Forecast {
            skipped: vec![3],
            ..Forecast::default()
        });
        assert_eq!(map(steps.unwrap()), rows("## .# ## ~~"));
        let probed = Reuse::AtRunTime(Probed::new(2, &graph(), 1, 0, 0.1).unwrap());
        assert_eq!(
            StepMap::of(&probed, vec![0.0, 0.5]),
            StepMap::Decided {
                middle: 2..6,
                reused: vec![0.0, 0.5]
            }
        );
    }

    #[test]
    fn a_page_holds_any_characters_and_asks_for_nothing_elsewhere() {
        let evil = "</script><img src=x onerror=alert(1)>& /* DATA */ \u{2028}\"'";
        let row = Row {
            schedule: evil.into(),
            policy: "p".into(),
            origin: Origin::Policy,
            steps: 2,
            cur: 0.0,
            macs_ratio: 1.0,
            errors: vec![0.1, 0.2],
            true_errors: Vec::new(),
            ssim: 0.5,
            seconds: vec![1.0],
            speedups: vec![1.0],
            peak_cache_bytes: 0,
            all_features_bytes: 1,
            peak_host_bytes: None,
            dispatches: None,
            warnings: vec![evil.into()],
        };
        let pictured = Pictured {
            map: StepMap::Table(vec!["##".into()]),
            pictures: vec![RgbImage::new(600, 300)],
        };
        let html = page(
            &Page {
                comparison: &Comparison::of(vec![row]),
                rows: &[pictured],
                captions: &[evil.into()],
                facts: &[("model", evil.into())],
                graph: &graph(),
                is_preview: true,
            },
            Path::new("a.html"),
        )
        .unwrap();
        assert!(!html.contains("://") && !html.contains("<img src"));
        let start = html
            .find("<script id=\"data\" type=\"application/json\">")
            .unwrap();
        let data = &html[html[start..].find('>').unwrap() + start + 1..];
        let data = &data[..data.find("</script>").unwrap()];
        assert!(!data.contains(['<', '>', '&']));
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["rows"][0]["schedule"], evil);
        assert_eq!(
            (&data["captions"][0], &data["facts"][0][1]),
            (&evil.into(), &evil.into())
        );
        let picture = data["rows"][0]["pictures"][0].as_str().unwrap();
        assert!(picture.starts_with("data:image/png;base64,iVBORw0KGgo"));
    }
}
