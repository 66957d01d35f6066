//! What is measured at each step of runs, and what it comes to.
//!
//! A step reads a few numbers an element of the batch back, summed row by row on the device and in double precision here.

use std::collections::{BTreeMap, VecDeque};

use burn::tensor::Tensor;

use crate::{
    device::read_back,
    graph::{Graph, SiteKind},
    policy::{FEATURE_DISTANCE, STREAM_DISTANCE},
    sampler::Seen,
    training::run::TrainingError,
};

/// Keeps a cosine of what is nothing from being no number, as CEM's code does.
const LEAST_NORM: f64 = 1e-8;

/// What earlier steps of a batch left.
#[derive(Default)]
pub(super) struct Past {
    /// Newest first.
    features: VecDeque<Vec<Tensor<3>>>,
    modulated: Option<Tensor<3>>,
    output: Option<Tensor<3>>,
    /// Norms of what all blocks added, `[B, tokens, 1]`.
    norms: Option<Tensor<3>>,
    /// Means over tokens of the stream, `[B, dim]` on the host, newest first.
    streams: VecDeque<Vec<f32>>,
}

/// Numerator and denominator of a relative change.
#[derive(Debug, Clone, Copy, Default)]
struct Ratio {
    difference: f64,
    size: f64,
}

impl Ratio {
    fn add(&mut self, other: Self) {
        self.difference += other.difference;
        self.size += other.size;
    }

    fn value(self) -> f64 {
        self.difference / self.size
    }
}

/// What was measured so far.
pub(super) struct Sums {
    steps: usize,
    /// By distance, step and branch.
    features: Vec<Vec<Vec<Ratio>>>,
    /// By distance and step, over images.
    streams: Vec<Vec<f64>>,
    /// By step: ratios over elements, and their number.
    magnitudes: Vec<Ratio>,
    /// By image and step.
    input_changes: Vec<Vec<f64>>,
    output_changes: Vec<Vec<f64>>,
}

impl Sums {
    /// Of nothing yet.
    pub fn new(steps: usize, graph: &Graph) -> Self {
        let pairs = |k: usize| steps.saturating_sub(k);
        let features = (1..=FEATURE_DISTANCE)
            .map(|k| vec![vec![Ratio::default(); graph.branches()]; pairs(k)]);
        Self {
            steps,
            features: features.collect(),
            streams: (1..=STREAM_DISTANCE).map(|k| vec![0.0; pairs(k)]).collect(),
            magnitudes: vec![Ratio::default(); steps],
            input_changes: Vec::new(),
            output_changes: Vec::new(),
        }
    }

    /// A step of a batch of so many images, the first of which is number `first`.
    ///
    /// # Errors
    /// [`TrainingError::Device`].
    pub fn add(
        &mut self,
        first: usize,
        images: usize,
        seen: &Seen,
        past: &mut Past,
    ) -> Result<(), TrainingError> {
        let step = seen.step;
        let added = seen.after.clone() - seen.before.clone();
        let norms = (added.clone() * added).sum_dim(2).sqrt();
        // Everything a number an element, in the order in which it is taken apart below.
        let mut numbers: Vec<Tensor<1>> = Vec::new();
        for feature in &seen.features {
            numbers.push(absolute(feature.clone()));
        }
        for earlier in &past.features {
            for (feature, earlier) in seen.features.iter().zip(earlier) {
                numbers.push(absolute(feature.clone() - earlier.clone()));
            }
        }
        if let (Some(modulated), Some(output), Some(before)) =
            (&past.modulated, &past.output, &past.norms)
        {
            for (now, before) in [(&seen.modulated, modulated), (&seen.output, output)] {
                numbers.push(absolute(now.clone() - before.clone()));
                numbers.push(absolute(before.clone()));
            }
            numbers.push(by_element((norms.clone() / before.clone()).mean_dim(1)));
        }
        let elements = seen.after.dims()[0];
        let numbers: Vec<f64> = read_back(Tensor::cat(numbers, 0))?
            .into_iter()
            .map(f64::from)
            .collect();
        let mut rows = numbers.chunks_exact(elements);
        let mut next = || rows.next().unwrap_or_default();
        let total = |row: &[f64]| row.iter().sum::<f64>();

        let sizes: Vec<f64> = seen.features.iter().map(|_| total(next())).collect();
        for k in 1..=past.features.len() {
            let pair = &mut self.features[k - 1][step - k];
            for (ratio, size) in pair.iter_mut().zip(&sizes) {
                ratio.add(Ratio {
                    difference: total(next()),
                    size: *size,
                });
            }
        }
        if step > 0 {
            for changes in [&mut self.input_changes, &mut self.output_changes] {
                let (difference, size) = (next(), next());
                // Both halves of an image together.
                let of_image = |row: &[f64], image: usize| -> f64 {
                    row.iter().skip(image).step_by(images).sum()
                };
                changes.resize(first + images, Vec::new());
                for (image, changes) in changes[first..].iter_mut().enumerate() {
                    changes.push(of_image(difference, image) / of_image(size, image));
                }
            }
            self.magnitudes[step].add(Ratio {
                difference: total(next()),
                size: elements as f64,
            });
        }

        let stream = read_back(seen.after.clone().mean_dim(1))?;
        for (k, earlier) in past.streams.iter().enumerate() {
            self.streams[k][step - k - 1] += distances(&stream, earlier, elements, images);
        }
        past.streams.push_front(stream);
        past.streams.truncate(STREAM_DISTANCE);
        past.features.push_front(seen.features.clone());
        past.features.truncate(FEATURE_DISTANCE);
        past.modulated = Some(seen.modulated.clone());
        past.output = Some(seen.output.clone());
        past.norms = Some(norms);
        Ok(())
    }

    /// Means over the blocks, by kind.
    pub fn feature_changes(&self, graph: &Graph) -> BTreeMap<String, Vec<Vec<f64>>> {
        let of_kind = |kind: SiteKind| {
            let branches: Vec<usize> = (0..graph.branches())
                .filter(|n| graph.sites()[*n].kind == kind)
                .collect();
            let mean = |pair: &Vec<Ratio>| {
                let changes = branches.iter().map(|n| pair[*n].value());
                changes.sum::<f64>() / branches.len() as f64
            };
            self.features
                .iter()
                .map(|row| row.iter().map(mean).collect())
                .collect()
        };
        let kinds = graph.kinds().into_iter();
        kinds
            .map(|kind| (kind.name().to_owned(), of_kind(kind)))
            .collect()
    }

    /// Means over the images, so many.
    pub fn stream_distances(&self, images: usize) -> Vec<Vec<f64>> {
        let mean = |row: &Vec<f64>| row.iter().map(|sum| sum / images as f64).collect();
        self.streams.iter().map(mean).collect()
    }

    /// Means over elements, by step.
    pub fn magnitude_ratios(&self) -> Vec<f64> {
        let ratio = |s: usize| match s {
            0 => 1.0,
            _ => self.magnitudes[s].value(),
        };
        (0..self.steps).map(ratio).collect()
    }

    /// Of each image and each step but the first, by image.
    pub fn input_changes(&self) -> Vec<f64> {
        self.input_changes.concat()
    }

    /// The same of the output.
    pub fn output_changes(&self) -> Vec<f64> {
        self.output_changes.concat()
    }
}

/// `Σ|x|` an element of `[B, tokens, dim]`.
fn absolute(x: Tensor<3>) -> Tensor<1> {
    by_element(x.abs().sum_dim(2).sum_dim(1))
}

/// `[B, 1, 1]` as `[B]`.
fn by_element(x: Tensor<3>) -> Tensor<1> {
    let elements = x.dims()[0];
    x.reshape([elements])
}

/// `1 − cos` of `[elements, dim]` and `[elements, dim]`, summed over images: element `i` of either half is image `i`'s, and its
/// elements are one vector.
fn distances(a: &[f32], b: &[f32], elements: usize, images: usize) -> f64 {
    let dim = a.len() / elements;
    let of_image = |image: usize| {
        let (mut product, mut squares) = (0.0, [0.0; 2]);
        for element in (image..elements).step_by(images) {
            let place = element * dim..(element + 1) * dim;
            for (a, b) in a[place.clone()].iter().zip(&b[place]) {
                let (a, b) = (f64::from(*a), f64::from(*b));
                product += a * b;
                squares[0] += a * a;
                squares[1] += b * b;
            }
        }
        1.0 - product / (squares[0].sqrt() * squares[1].sqrt() + LEAST_NORM)
    };
    (0..images).map(of_image).sum()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{
        diffusion::ImageNoise,
        models::Condition,
        sampler::{Observer, Request, Sampler},
        training::small,
    };

    /// Three steps of two images and halves of a small network.
    fn seen() -> (Graph, Sums, Vec<Seen>) {
        let (model, info) = small::model(0, &Device::flex());
        let settings = small::run(3);
        let sampler = Sampler::new(&model, settings, None).unwrap();
        let mut noise = Vec::new();
        let mut streams: Vec<_> = (0..2).map(|i| ImageNoise::new(5, i)).collect();
        for stream in &mut streams {
            stream.fill(info.outline.latents.numbers(), &mut noise);
        }
        let request = Request {
            conditions: Condition::classes(&[0, 2]),
            first: 0,
            seed: 5,
            noise: Some(noise),
            batch: 2,
        };
        let graph = info.outline.graph;
        let mut observer = Observer::new(&sampler, request, streams).unwrap();
        let (mut sums, mut past) = (Sums::new(3, &graph), Past::default());
        let mut all = Vec::new();
        for _ in 0..3 {
            let seen = observer.step().unwrap();
            sums.add(0, 2, &seen, &mut past).unwrap();
            all.push(seen);
        }
        (graph, sums, all)
    }

    fn host(x: &Tensor<3>) -> Vec<f64> {
        let values = read_back(x.clone()).unwrap();
        values.into_iter().map(f64::from).collect()
    }

    fn relative(now: &[f64], before: &[f64], size: &[f64]) -> f64 {
        let difference: f64 = now.iter().zip(before).map(|(a, b)| (a - b).abs()).sum();
        difference / size.iter().map(|v| v.abs()).sum::<f64>()
    }

    #[track_caller]
    fn close(found: f64, expected: f64) {
        assert!(
            (found / expected - 1.0).abs() < 1e-4,
            "{found}, expected {expected}"
        );
    }

    #[test]
    fn measurements_are_those_of_plain_loops() {
        let (graph, sums, seen) = seen();
        // MLPs two steps apart: branches 1 and 3.
        let changes = [1, 3].map(|n| {
            let [before, now] = [0, 2].map(|s| host(&seen[s].features[n]));
            relative(&now, &before, &now)
        });
        let features = sums.feature_changes(&graph);
        close(features["MLP"][1][0], (changes[0] + changes[1]) / 2.0);
        assert_eq!(features["attention"][0].len(), 2);

        // Of each image both halves, one after the other: elements 0 and 2, 1 and 3.
        let [tokens, dim] = [graph.tokens(), graph.width()];
        let of_image = |values: &[f64], image: usize| -> Vec<f64> {
            let element = values.len() / 4;
            let halves = [image, image + 2].map(|e| &values[e * element..(e + 1) * element]);
            halves.concat()
        };
        let means = |s: usize, image: usize| -> Vec<f64> {
            let of_image = of_image(&host(&seen[s].after), image);
            let mean = |half: &[f64], d: usize| {
                (0..tokens).map(|t| half[t * dim + d]).sum::<f64>() / tokens as f64
            };
            let halves = of_image.chunks(tokens * dim);
            halves
                .flat_map(|half| (0..dim).map(move |d| mean(half, d)))
                .collect()
        };
        let distance = |image: usize| {
            let (a, b) = (means(2, image), means(1, image));
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            1.0 - dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
        };
        let found = sums.stream_distances(2)[0][1];
        let expected = (distance(0) + distance(1)) / 2.0;
        assert!((found - expected).abs() < 1e-5 * (1.0 + expected));

        let norms = |s: usize| -> Vec<f64> {
            let (before, after) = (host(&seen[s].before), host(&seen[s].after));
            let added: Vec<f64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
            let norm = |token: &[f64]| token.iter().map(|v| v * v).sum::<f64>().sqrt();
            added.chunks(dim).map(norm).collect()
        };
        let ratios: Vec<f64> = norms(2).iter().zip(norms(1)).map(|(a, b)| a / b).collect();
        let expected = ratios.iter().sum::<f64>() / ratios.len() as f64;
        close(sums.magnitude_ratios()[2], expected);
        assert_eq!(sums.magnitude_ratios()[0], 1.0);

        let inputs = [1, 2].map(|s| of_image(&host(&seen[s].modulated), 1));
        close(
            sums.input_changes[1][1],
            relative(&inputs[1], &inputs[0], &inputs[0]),
        );
        let outputs = [0, 1].map(|s| of_image(&host(&seen[s].output), 0));
        close(
            sums.output_changes[0][0],
            relative(&outputs[1], &outputs[0], &outputs[0]),
        );
    }

    #[test]
    fn both_halves_of_an_image_are_one_vector() {
        // Two images, two halves, two dimensions: elements are image 0, image 1, image 0, image 1.
        let a = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0];
        let b = [1.0, 0.0, 0.0, 2.0, 0.0, -1.0, 0.0, 0.0];
        // Of image 0: (1, 0, 0, 1) and (1, 0, 0, −1); of image 1: (1, 0, 0, 0) and (0, 2, 0, 0).
        let found = distances(&a, &b, 4, 2);
        assert!((found - 2.0).abs() < 1e-12, "{found}");
        let found = distances(&a, &a, 4, 2);
        assert!(found.abs() < 1e-7, "{found}");
    }
}
