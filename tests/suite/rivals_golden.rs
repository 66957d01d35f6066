//! Published policies against golden values of an independent program (`tests/golden/make_rivals.py`): what they forecast, decide
//! and measure, and the images of whole runs.
//!
//! Left out is what no policy here can be asked for: Spectrum's polynomials of another degree, its other line and shorter history;
//! MagCache's other first steps and reuses in a row; CEM's wider gaps; DiCache's farther correction; and of Δ-DiT the steps from a
//! cutoff on that is no multiple of the interval, since its intervals begin anew there.

use std::{collections::BTreeMap, ops::Range};

use harmonica::{
    checkpoint::{LoadOptions, ModelSpec},
    diffusion::{Guidance, GuidedChannels, Solver, Spacing},
    graph::{Graph, SiteKind},
    metrics::max_abs_error,
    models::Condition,
    pipeline::Pipeline,
    policy::{
        self, CALIBRATION_FORMAT, Calibration, FEATURE_DISTANCE, Policy, PolicyError, forecasts,
    },
    sampler::{Event, Request, Sampler, Settings},
    schedule::{
        Decisions, Joint, ModelIdentity, Probed, Reuse, Rule, RunSettings, Schedule, ScheduleError,
        Sum,
    },
    training::calibration::calibrate_along,
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::common::{engines, golden, integers, tensor, within};

const NOISE: &str = "hooks.safetensors";
const IMAGES: &str = "rivals.safetensors";
const STEPS: usize = 20;
/// Of the networks of tables: attention and MLP.
const BRANCHES: usize = 2;

/// A part of the golden values.
fn part<T: DeserializeOwned>(name: &str) -> T {
    let text = std::fs::read_to_string(golden("rivals.json")).unwrap();
    let mut parts: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    serde_json::from_value(parts.remove(name).unwrap()).unwrap()
}

/// A case's inputs and what comes of them.
#[derive(Deserialize)]
struct Case<I, E> {
    #[serde(flatten)]
    given: I,
    expected: E,
}

/// For each step 1, computed, or 0.
#[derive(Deserialize)]
struct Bits {
    computed: String,
}

/// The same of a whole run, and its image.
#[derive(Deserialize)]
struct Drawn {
    computed: String,
    image: String,
}

fn graph(blocks: usize) -> Graph {
    let pattern = [(SiteKind::SelfAttention, 3), (SiteKind::Mlp, 5)];
    Graph::uniform(blocks, &pattern, [4, 8], 2).unwrap()
}

fn text(computed: impl IntoIterator<Item = bool>) -> String {
    let bit = |computes| if computes { '1' } else { '0' };
    computed.into_iter().map(bit).collect()
}

/// Which steps compute a branch.
fn column(table: &Schedule, n: usize) -> String {
    text((0..table.steps()).map(|s| table.computes(s, n)))
}

/// Of tables that compute all branches or none.
fn bits(table: &Schedule) -> String {
    let all: Vec<String> = (0..table.branches()).map(|n| column(table, n)).collect();
    assert!(all.iter().all(|bits| *bits == all[0]), "{all:?}");
    all[0].clone()
}

fn table_of(computed: &str, branches: usize) -> Schedule {
    let bits = computed.as_bytes();
    Schedule::from_rule(bits.len(), branches, |s, _| bits[s] == b'1').unwrap()
}

/// A calibration in which nothing changes.
fn blank(graph: &Graph, steps: usize) -> Calibration {
    Calibration {
        format: CALIBRATION_FORMAT,
        model: ModelIdentity {
            family: "DiT".into(),
            graph: graph.clone(),
            fingerprint: None,
        },
        run: RunSettings {
            solver: "ddim".into(),
            steps,
            timesteps: (0..steps).rev().collect(),
            guidance: None,
            resolution: [2, 2],
            clip_x0: Some(false),
        },
        images: 1,
        seed: 0,
        feature_changes: BTreeMap::new(),
        stream_distances: Vec::new(),
        magnitude_ratios: vec![1.0; steps],
        input_changes: Vec::new(),
        output_changes: Vec::new(),
    }
}

/// What a policy makes of a calibration.
fn made(policy: &Policy, calibration: &Calibration) -> Result<Reuse, PolicyError> {
    let (steps, graph) = (calibration.run.steps, &calibration.model.graph);
    policy.reuse_calibrated(steps, graph, Some(calibration))
}

fn tabled(policy: &Policy, calibration: &Calibration) -> Schedule {
    made(policy, calibration).unwrap().table().unwrap().clone()
}

/// The largest difference, in units of 1 or of what is expected where that is larger.
fn apart(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(expected);
    pairs.fold(0.0, |most, (a, b)| {
        most.max((a - b).abs() / b.abs().max(1.0))
    })
}

#[derive(Deserialize)]
struct Forecasts<I> {
    cases: Vec<Case<Forecast<I>, Vec<Forecasted>>>,
}

#[derive(Deserialize)]
struct Forecast<I> {
    #[serde(flatten)]
    arguments: I,
    computed_steps: Vec<usize>,
    features: Vec<Vec<f64>>,
}

/// Weights oldest first, and what they give of the features.
#[derive(Deserialize)]
struct Forecasted {
    step: usize,
    weights: Vec<f64>,
    value: Vec<f64>,
}

#[derive(Deserialize)]
struct NoArguments {}

/// How far weights and values are off, of steps that saw at most so many computed ones; and how many those are.
fn forecast_errors<I>(
    case: &Case<Forecast<I>, Vec<Forecasted>>,
    most: usize,
    forecast: impl Fn(Schedule) -> Result<Schedule, ScheduleError>,
) -> ([f64; 2], usize) {
    let Forecast {
        computed_steps,
        features,
        ..
    } = &case.given;
    let last = case.expected.iter().map(|forecast| forecast.step).max();
    let table = Schedule::from_rule(last.unwrap() + 1, 1, |s, _| computed_steps.contains(&s));
    let table = forecast(table.unwrap()).unwrap();
    let (mut errors, mut compared) = ([0.0f64; 2], 0);
    let comparable = case
        .expected
        .iter()
        .filter(|expected| expected.weights.len() <= most);
    for Forecasted {
        step,
        weights,
        value,
    } in comparable
    {
        let mut found: Vec<f64> = table
            .weights(*step, 0)
            .iter()
            .map(|w| f64::from(*w))
            .collect();
        // Old features may be left out.
        found.resize(weights.len(), 0.0);
        found.reverse();
        let weighed = |i: usize| {
            found
                .iter()
                .zip(features)
                .map(|(w, f)| w * f[i])
                .sum::<f64>()
        };
        let values: Vec<f64> = (0..value.len()).map(weighed).collect();
        errors[0] = errors[0].max(apart(&found, weights));
        errors[1] = errors[1].max(apart(&values, value));
        compared += 1;
    }
    (errors, compared)
}

#[track_caller]
fn forecasts_within(name: &str, errors: [f64; 2]) {
    within(format!("weights of {name}"), errors[0], 2e-7);
    within(format!("values of {name}"), errors[1], 4e-7);
}

#[test]
fn heuns_forecasts_are_those_of_cache_dit() {
    let part: Forecasts<NoArguments> = part("foca");
    for case in &part.cases {
        let (errors, compared) = forecast_errors(case, usize::MAX, forecasts::foca);
        assert_eq!(compared, case.expected.len());
        forecasts_within("foca", errors);
    }
}

#[derive(Deserialize)]
struct Order {
    order: usize,
}

#[test]
fn taylors_forecasts_are_those_of_diffusers() {
    let part: Forecasts<Order> = part("taylor");
    for case in &part.cases {
        let order = case.given.arguments.order;
        let forecast = |table| forecasts::taylor(table, order);
        let (errors, compared) = forecast_errors(case, usize::MAX, forecast);
        assert_eq!(compared, case.expected.len());
        forecasts_within(&format!("taylor of order {order}"), errors);
    }
}

#[derive(Deserialize)]
struct Series {
    span: usize,
    m: usize,
    lambda: f64,
    w: f64,
    keep: usize,
    linear: String,
}

#[test]
fn chebyshevs_forecasts_are_those_of_spectrum() {
    let part: Forecasts<Series> = part("spectrum");
    let mut all = 0;
    for case in &part.cases {
        let Series {
            span,
            m,
            lambda,
            w,
            keep,
            linear,
        } = &case.given.arguments;
        if (*m, *lambda, &linear[..]) != (4, 0.1, "distance") {
            continue;
        }
        let forecast = |table| forecasts::spectrum(table, *span, *w);
        let (errors, compared) = forecast_errors(case, *keep, forecast);
        all += compared;
        forecasts_within(&format!("spectrum of {w}"), errors);
    }
    // Of the last case those that saw six steps or fewer.
    assert_eq!(all, 13 + 10 + 8);
}

#[derive(Deserialize)]
struct Interval {
    source: String,
    steps: usize,
    interval: usize,
    warmup: usize,
}

#[derive(Deserialize)]
struct Tables<I, E> {
    steps: Vec<Case<I, E>>,
}

/// Whatever is computed first, intervals go on alike from the step after that on.
#[test]
fn forecast_tables_are_those_of_others_after_the_first_steps() {
    let part_of_taylor: Tables<Interval, Bits> = part("taylor");
    for Case { given, expected } in part_of_taylor.steps {
        // The step that stands for our step 1, from which intervals are counted.
        let one = match &given.source[..] {
            "diffusers" => given.warmup + 1,
            _ => given.warmup - 1,
        };
        let policy = Policy::from(policy::Taylor {
            interval: given.interval,
            order: 1,
        });
        let table = policy.schedule(given.steps + 1 - one, &graph(1)).unwrap();
        assert_eq!(
            bits(&table)[1..],
            expected.computed[one..],
            "{}",
            given.source
        );
    }
    #[derive(Deserialize)]
    struct Window {
        steps: usize,
        warmup: usize,
        window: usize,
        flex: f64,
    }
    let part_of_spectrum: Tables<Window, Bits> = part("spectrum");
    for Case { given, expected } in part_of_spectrum.steps {
        let policy = Policy::from(policy::Spectrum {
            interval: given.window,
            growth: given.flex,
            blend: 0.5,
        });
        // Five steps are computed first.
        let more = 5 - given.warmup;
        let table = policy.schedule(given.steps + more, &graph(1)).unwrap();
        assert_eq!(
            bits(&table)[more..],
            expected.computed,
            "{} steps",
            given.steps
        );
    }
}

#[derive(Deserialize)]
struct Tea {
    decisions: Vec<Case<Changes, Bits>>,
    fits: Vec<Case<Places, Fit>>,
    runs: Vec<Case<Polynomial, Drawn>>,
}

#[derive(Deserialize)]
struct Changes {
    polynomial: Vec<f64>,
    threshold: f64,
    steps: usize,
    changes: Vec<f32>,
}

#[derive(Deserialize)]
struct Places {
    x: Vec<f64>,
    y: Vec<f64>,
}

#[derive(Deserialize)]
struct Fit {
    polynomial: Vec<f64>,
    values: Vec<f64>,
}

#[derive(Deserialize)]
struct Polynomial {
    polynomial: Vec<f64>,
    threshold: f64,
}

impl Polynomial {
    fn probed(&self, graph: &Graph) -> Probed {
        let sum = Sum {
            threshold: self.threshold,
            polynomial: self.polynomial.clone(),
        };
        let probed = Probed::of_modulated_input(STEPS, graph, sum).unwrap();
        probed.with_last_computed()
    }
}

#[test]
fn changes_add_up_as_in_teacache() {
    let tea: Tea = part("tea");
    for Case { given, expected } in tea.decisions {
        let sum = Sum {
            threshold: given.threshold,
            polynomial: given.polynomial,
        };
        let probed = Probed::of_modulated_input(given.steps, &graph(1), sum).unwrap();
        let probed = probed.with_last_computed();
        let mut decisions = Decisions::default();
        let computes = |s: usize| {
            let reuses =
                probed.decides(s, 0) && probed.rule().reuses(given.changes[s - 1], &mut decisions);
            decisions.note(reuses);
            !reuses
        };
        assert_eq!(text((0..given.steps).map(computes)), expected.computed);
    }
}

#[test]
fn polynomials_are_those_of_numpy() {
    let tea: Tea = part("tea");
    for Case { given, expected } in tea.fits {
        let calibration = Calibration {
            input_changes: given.x.clone(),
            output_changes: given.y,
            ..blank(&graph(1), STEPS)
        };
        let reuse = made(&policy::Tea { threshold: 1.0 }.into(), &calibration).unwrap();
        let Reuse::AtRunTime(probed) = reuse else {
            panic!("it decides at run time");
        };
        let Rule::Sum(sum) = probed.rule() else {
            panic!("its changes add up");
        };
        let at = |x: &f64| sum.polynomial.iter().fold(0.0, |value, c| value * x + c);
        let values: Vec<f64> = given.x.iter().map(at).collect();
        within(
            "coefficients",
            apart(&sum.polynomial, &expected.polynomial),
            2e-12,
        );
        within("fitted values", apart(&values, &expected.values), 1e-13);
    }
}

#[derive(Deserialize)]
struct Mag {
    decisions: Vec<Case<Magnitudes, MagBits>>,
    measured: Measured<Gamma>,
    runs: Vec<Case<Magnitudes, Drawn>>,
}

#[derive(Deserialize)]
struct Magnitudes {
    threshold: f64,
    retention: f64,
    most: usize,
}

impl Magnitudes {
    /// The policy, where it is one of ours.
    fn policy(&self) -> Option<Policy> {
        let threshold = self.threshold;
        ((self.retention, self.most) == (0.2, 3)).then(|| policy::Mag { threshold }.into())
    }
}

#[derive(Deserialize)]
struct MagBits {
    ratios: Vec<f64>,
    computed: String,
}

/// What a whole run that computes everything gives.
#[derive(Deserialize)]
struct Measured<E> {
    expected: E,
}

#[derive(Deserialize)]
struct Gamma {
    gamma: Vec<f64>,
}

#[test]
fn magnitudes_decide_as_in_magcache() {
    let mag: Mag = part("mag");
    let mut compared = 0;
    for Case { given, expected } in mag.decisions {
        let Some(policy) = given.policy() else {
            continue;
        };
        let steps = expected.ratios.len();
        let calibration = Calibration {
            magnitude_ratios: expected.ratios,
            ..blank(&graph(1), steps)
        };
        assert_eq!(bits(&tabled(&policy, &calibration)), expected.computed);
        compared += 1;
    }
    assert_eq!(compared, 3);
}

#[derive(Deserialize)]
struct Smooth {
    schedules: Vec<Case<Errors, Bits>>,
    measured: Measured<Kinds>,
    runs: Vec<Case<Alpha, SmoothDrawn>>,
}

#[derive(Deserialize)]
struct Errors {
    steps: usize,
    threshold: f64,
    errors: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Kinds {
    errors: ByKind<Vec<Vec<f64>>>,
}

#[derive(Deserialize)]
struct ByKind<T> {
    attention: T,
    mlp: T,
}

#[derive(Deserialize)]
struct Alpha {
    threshold: f64,
}

#[derive(Deserialize)]
struct SmoothDrawn {
    computed: ByKind<String>,
    image: String,
}

#[test]
fn small_changes_are_skipped_as_in_smoothcache() {
    let smooth: Smooth = part("smooth");
    for Case { given, expected } in smooth.schedules {
        let graph = graph(1);
        let kinds = graph.kinds().into_iter();
        let calibration = Calibration {
            feature_changes: kinds
                .map(|kind| (kind.name().to_owned(), given.errors.clone()))
                .collect(),
            ..blank(&graph, given.steps)
        };
        let threshold = given.threshold;
        let table = tabled(&policy::Smooth { threshold }.into(), &calibration);
        assert_eq!(bits(&table), expected.computed, "{threshold}");
    }
}

#[derive(Deserialize)]
struct Cem {
    priors: Vec<Prior>,
    measured: CemMeasured,
}

#[derive(Deserialize)]
struct Prior {
    prior: Vec<Vec<f64>>,
    cases: Vec<Case<Budget, Chosen>>,
}

#[derive(Deserialize)]
struct CemMeasured {
    expected: Distances,
    cases: Vec<Case<Budget, Chosen>>,
}

#[derive(Deserialize)]
struct Distances {
    prior: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Budget {
    budget: usize,
    radius: usize,
}

/// None where there is no choice.
#[derive(Deserialize)]
struct Chosen {
    steps: Option<Vec<usize>>,
}

/// The distances of pairs of steps, by the first of each pair; golden are those by the second.
fn of_pairs(prior: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let rows = prior.iter().enumerate();
    rows.map(|(k, row)| row[k + 1..].to_vec()).collect()
}

/// How many of the cases are ours.
fn chosen_alike(cases: &[Case<Budget, Chosen>], calibration: &Calibration) -> usize {
    let ours = cases.iter().filter(|case| case.given.radius == 1);
    ours.map(|Case { given, expected }| {
        let reuse = made(
            &policy::Cem {
                count: given.budget,
            }
            .into(),
            calibration,
        );
        match &expected.steps {
            Some(steps) => {
                let found = reuse.unwrap().table().unwrap().computed_steps(0);
                assert_eq!(found, *steps, "{} steps", given.budget);
            }
            None => assert!(
                matches!(reuse, Err(PolicyError::Arguments { .. })),
                "{reuse:?}"
            ),
        }
    })
    .count()
}

#[test]
fn the_cheapest_steps_are_those_of_cem() {
    let cem: Cem = part("cem");
    let compared: usize = cem
        .priors
        .iter()
        .map(|Prior { prior, cases }| {
            let calibration = Calibration {
                stream_distances: of_pairs(prior),
                ..blank(&graph(1), prior[0].len())
            };
            chosen_alike(cases, &calibration)
        })
        .sum();
    assert_eq!(compared, 4 + 2 + 5 + 1);
}

#[derive(Deserialize)]
struct DeltaPart {
    tables: Vec<Case<Ranges, Reused>>,
    runs: Vec<Case<Ranges, DeltaDrawn>>,
}

#[derive(Deserialize)]
struct Ranges {
    #[serde(default)]
    blocks: usize,
    #[serde(default)]
    steps: usize,
    interval: usize,
    cutoff: usize,
    count: usize,
}

impl Ranges {
    fn policy(&self) -> Policy {
        Policy::from(policy::Delta {
            interval: self.interval,
            cutoff: Some(self.cutoff),
            blocks: Some(self.count),
        })
    }

    /// The steps that ours reuse alike: intervals begin anew at the cutoff.
    fn alike(&self, steps: usize) -> usize {
        match self.cutoff.is_multiple_of(self.interval) {
            true => steps,
            false => self.cutoff,
        }
    }
}

/// The blocks that each step does not run.
#[derive(Deserialize)]
struct Reused {
    reused: Vec<Option<[usize; 2]>>,
}

#[derive(Deserialize)]
struct DeltaDrawn {
    image: String,
    #[serde(flatten)]
    table: Reused,
}

impl Reused {
    /// Branches instead of blocks.
    fn branches(&self, s: usize) -> Vec<Range<usize>> {
        let range = |[start, end]: [usize; 2]| BRANCHES * start..BRANCHES * end;
        self.reused[s].map(range).into_iter().collect()
    }

    fn table(&self, branches: usize) -> Schedule {
        let reused = |s: usize, n| self.branches(s).iter().any(|range| range.contains(&n));
        let table = Schedule::from_rule(self.reused.len(), branches, |s, n| !reused(s, n));
        table.unwrap().with_joint(Joint::Added).unwrap()
    }
}

#[test]
fn ranges_of_blocks_are_reused_as_in_delta_dit() {
    let delta: DeltaPart = part("delta");
    for Case { given, expected } in delta.tables {
        let policy = given.policy();
        let table = policy.schedule(given.steps, &graph(given.blocks)).unwrap();
        for s in 0..given.alike(given.steps) {
            let found = table.reused_together(s);
            assert_eq!(found, expected.branches(s), "{policy}, step {s}");
        }
    }
}

/// The network that all whole runs are of.
struct Network {
    device: &'static str,
    pipeline: Pipeline,
}

impl Network {
    /// On each device, and whether few runs will do there.
    fn all() -> impl Iterator<Item = (Self, bool)> {
        engines().into_iter().map(|(device, engine)| {
            let spec = ModelSpec::Path(golden("hooks"));
            let pipeline = Pipeline::open(&engine, &spec, LoadOptions::default()).unwrap();
            (Self { device, pipeline }, device != "cpu")
        })
    }

    fn graph(&self) -> &Graph {
        &self.pipeline.info.outline.graph
    }

    fn settings() -> Settings {
        Settings {
            steps: STEPS,
            spacing: Spacing::Even,
            solver: Solver::ddim(0.0).unwrap(),
            guidance: Guidance::new(1.5, GuidedChannels::Three).unwrap(),
            clip_x0: false,
        }
    }

    fn request() -> Request {
        Request {
            conditions: Condition::classes(&integers(NOISE, "labels")),
            seed: 0,
            first: 0,
            noise: Some(tensor(NOISE, "noise").1),
            batch: 2,
        }
    }

    fn calibration(&self) -> Calibration {
        calibrate_along(&self.pipeline, Self::settings(), Self::request()).unwrap()
    }

    /// Draws the image of a run, and tells what was decided on the way.
    fn drawn(&self, reuse: impl Into<Reuse>, image: &str) -> String {
        let sampler = Sampler::reusing(&self.pipeline.model, Self::settings(), reuse.into());
        let sampler = sampler.unwrap().with_poisoned_cache();
        let (mut images, mut computed) = (Vec::new(), Vec::new());
        for event in sampler.run(Self::request()).unwrap() {
            match event.unwrap() {
                Event::Step { reused, .. } => computed.push(!reused),
                Event::Images { x0, .. } => images.extend(x0),
                _ => {}
            }
        }
        let expected = tensor(IMAGES, image).1;
        let largest = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let error = max_abs_error(&images, &expected) / largest;
        within(format!("{image}, {}", self.device), error, 3e-6);
        text(computed)
    }

    /// The same of a run that decides while it goes on, which must be as expected.
    fn decided(&self, probed: Probed, expected: &Drawn) {
        let found = self.drawn(Reuse::AtRunTime(probed), &expected.image);
        assert_eq!(
            found, expected.computed,
            "{}, {}",
            expected.image, self.device
        );
    }
}

/// All, or the first of them.
fn few<T>(runs: Vec<T>, is_few: bool) -> impl Iterator<Item = T> {
    let count = if is_few { 1 } else { runs.len() };
    runs.into_iter().take(count)
}

#[test]
fn whole_runs_forecast_as_diffusers_hooks() {
    #[derive(Deserialize)]
    struct Part {
        runs: Vec<Case<Order, Drawn>>,
    }
    for (network, is_few) in Network::all() {
        let Part { runs } = part("taylor");
        for Case { given, expected } in few(runs, is_few) {
            let table = table_of(&expected.computed, network.graph().branches());
            let table = forecasts::taylor(table, given.order).unwrap();
            network.drawn(table, &expected.image);
        }
    }
}

#[test]
fn whole_runs_of_teacache_decide_alike() {
    for (network, is_few) in Network::all() {
        let Tea { runs, .. } = part("tea");
        for Case { given, expected } in few(runs, is_few) {
            network.decided(given.probed(network.graph()), &expected);
        }
    }
}

#[test]
fn whole_runs_of_easycache_decide_alike() {
    #[derive(Deserialize)]
    struct Part {
        runs: Vec<Case<First, Drawn>>,
    }
    #[derive(Deserialize)]
    struct First {
        first: usize,
        threshold: f64,
    }
    for (network, is_few) in Network::all() {
        let Part { runs } = part("easy");
        for Case { given, expected } in few(runs, is_few) {
            let policy = Policy::from(policy::Easy {
                threshold: given.threshold,
                warm_up: given.first,
            });
            let reuse = policy.reuse(STEPS, network.graph()).unwrap();
            let found = network.drawn(reuse, &expected.image);
            assert_eq!(found, expected.computed, "{policy}, {}", network.device);
        }
    }
}

#[test]
fn whole_runs_of_dicache_decide_alike() {
    #[derive(Deserialize)]
    struct Part {
        runs: Vec<Case<First, Drawn>>,
    }
    #[derive(Deserialize)]
    struct First {
        first: usize,
        last: bool,
        threshold: f64,
        most: f64,
    }
    for (network, is_few) in Network::all() {
        let Part { mut runs } = part("di");
        runs.retain(|run| run.given.most == 1.5);
        assert_eq!(runs.len(), 3);
        for Case { given, expected } in few(runs, is_few) {
            let sum = Sum::plain(given.threshold);
            let probed = Probed::of_front_stream(STEPS, network.graph(), sum).unwrap();
            let probed = probed.with_warm_up(given.first);
            let probed = match given.last {
                true => probed.with_last_computed(),
                false => probed,
            };
            // The published numbers of first and last steps are the policy's.
            if (given.first, given.last) == (5, true) {
                let policy = Policy::from(policy::Dicache {
                    threshold: given.threshold,
                });
                let reuse = policy.reuse(STEPS, network.graph()).unwrap();
                assert_eq!(reuse, Reuse::AtRunTime(probed.clone()));
            }
            network.decided(probed, &expected);
        }
    }
}

#[test]
fn whole_runs_reuse_ranges_as_in_delta_dit() {
    for (network, is_few) in Network::all() {
        let DeltaPart { runs, .. } = part("delta");
        for Case { given, expected } in few(runs, is_few) {
            let graph = network.graph();
            let table = expected.table.table(graph.branches());
            if given.alike(STEPS) == STEPS {
                let policy = given.policy();
                assert_eq!(policy.schedule(STEPS, graph).unwrap(), table, "{policy}");
            }
            network.drawn(table, &expected.image);
        }
    }
}

/// Calibrations of the golden run, and the runs of what is made of them.
#[test]
fn measurements_and_what_follows_are_those_of_others() {
    for (network, is_few) in Network::all() {
        let (device, calibration) = (network.device, network.calibration());
        let branches = network.graph().branches();
        let full = Schedule::full(STEPS, branches).unwrap();
        network.drawn(full, "full");

        let smooth: Smooth = part("smooth");
        let Kinds { errors } = smooth.measured.expected;
        for (kind, expected) in [
            (SiteKind::SelfAttention, &errors.attention),
            (SiteKind::Mlp, &errors.mlp),
        ] {
            let found = calibration.feature_changes(kind);
            assert_eq!(
                (found.len(), expected.len()),
                (FEATURE_DISTANCE, FEATURE_DISTANCE)
            );
            let error = apart(&found.concat(), &expected.concat());
            within(format!("changes of {}, {device}", kind.name()), error, 3e-6);
        }
        for Case { given, expected } in few(smooth.runs, is_few) {
            let threshold = given.threshold;
            let table = tabled(&policy::Smooth { threshold }.into(), &calibration);
            for n in 0..branches {
                let expected = match network.graph().sites()[n].kind {
                    SiteKind::Mlp => &expected.computed.mlp,
                    _ => &expected.computed.attention,
                };
                assert_eq!(column(&table, n), *expected, "{device}, {threshold}");
            }
            network.drawn(table, &expected.image);
        }

        let mag: Mag = part("mag");
        let gamma = &mag.measured.expected.gamma;
        let error = apart(&calibration.magnitude_ratios, gamma);
        within(format!("magnitudes, {device}"), error, 3e-6);
        for Case { given, expected } in few(mag.runs, is_few) {
            let table = table_of(&expected.computed, branches);
            let table = table.with_joint(Joint::Added).unwrap();
            if let Some(policy) = given.policy() {
                assert_eq!(tabled(&policy, &calibration), table, "{device}, {policy}");
            }
            network.drawn(table, &expected.image);
        }

        let Cem { measured, .. } = part("cem");
        let expected = of_pairs(&measured.expected.prior);
        let found = &calibration.stream_distances;
        let error = apart(&found.concat(), &expected.concat());
        within(format!("distances of the stream, {device}"), error, 1e-6);
        assert_eq!(chosen_alike(&measured.cases, &calibration), 3);
    }
}
