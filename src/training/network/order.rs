//! Which picture comes when.

use super::random::{Purpose, Stream};

/// The order of the pictures, a function of the seed and the number of a drawn picture.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Every picture once an epoch, in an order of the epoch's own; the last epoch's order is kept at hand.
    Shuffled {
        count: usize,
        epoch: Option<u64>,
        order: Vec<u32>,
    },
    /// With replacement: running sums of the pictures' weights.
    Weighted { sums: Vec<f64> },
}

impl Order {
    /// For pictures with these labels in classes of `counts` pictures.
    ///
    /// `balance` `e` gives a picture of a class of `n` the weight `n^−e`: 0 draws every picture equally often (and then
    /// without replacement), 1 every class.
    pub fn new(seed: u64, labels: &[usize], counts: &[usize], balance: f64) -> Self {
        let kind = if balance == 0.0 {
            Kind::Shuffled {
                count: labels.len(),
                epoch: None,
                order: Vec::new(),
            }
        } else {
            let mut sum = 0.0;
            let sums = labels
                .iter()
                .map(|y| {
                    sum += (counts[*y].max(1) as f64).powf(-balance);
                    sum
                })
                .collect();
            Kind::Weighted { sums }
        };
        Self { seed, kind }
    }

    /// The index of drawn picture `number` (over the whole run); `stream` is the picture's own.
    pub(super) fn pick(&mut self, number: u64, stream: &mut Stream) -> usize {
        match &mut self.kind {
            Kind::Weighted { sums } => {
                let total = sums.last().copied().unwrap_or(0.0);
                let at = stream.unit() * total;
                sums.partition_point(|sum| *sum <= at)
                    .min(sums.len().saturating_sub(1))
            }
            Kind::Shuffled {
                count,
                epoch,
                order,
            } => {
                let (number_of, place) = (number / *count as u64, number % *count as u64);
                if *epoch != Some(number_of) {
                    *order = shuffled(self.seed, number_of, *count);
                    *epoch = Some(number_of);
                }
                order[place as usize] as usize
            }
        }
    }
}

/// A permutation of `0..count` (Fisher and Yates).
fn shuffled(seed: u64, epoch: u64, count: usize) -> Vec<u32> {
    let mut stream = Stream::new(seed, Purpose::Epoch, epoch, 0);
    let mut order: Vec<u32> = (0..count as u32).collect();
    for i in (1..count).rev() {
        order.swap(i, stream.below(i + 1));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(order: &mut Order, numbers: std::ops::Range<u64>) -> Vec<usize> {
        numbers
            .map(|n| order.pick(n, &mut Stream::new(5, Purpose::Picture, n, 0)))
            .collect()
    }

    #[test]
    fn an_epoch_shows_every_picture_once_and_can_be_entered_anywhere() {
        let labels = [0; 10];
        let mut order = Order::new(5, &labels, &[10], 0.0);
        let all = draw(&mut order, 0..30);
        for epoch in all.chunks(10) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(all[..10], all[10..20]);
        assert_eq!(
            draw(&mut Order::new(5, &labels, &[10], 0.0), 13..30),
            all[13..]
        );
    }

    #[test]
    fn balance_one_shows_every_class_equally_often() {
        let labels: Vec<usize> = (0..100).map(|i| usize::from(i >= 90)).collect();
        let mut order = Order::new(5, &labels, &[90, 10], 1.0);
        let drawn = draw(&mut order, 0..4000);
        let small = drawn.iter().filter(|i| **i >= 90).count();
        assert!((1850..2150).contains(&small), "{small} of 4000");
    }
}
