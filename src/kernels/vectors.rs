//! adaLN vectors where they lie: a slab holds those of many blocks, steps and labels.

use burn::tensor::Tensor;

/// One vector of every batch element in a slab `[blocks, rows, width]`.
///
/// Element `e`'s channel `i` is number `start + min(e, count − 1)·stride + i` of the slab: the elements beyond
/// `count` share the last row, as the unconditional half of a guided batch does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VectorAt {
    /// First number of element 0's vector.
    pub start: usize,
    /// Numbers from an element's vector to the next element's, the slab's width.
    pub stride: usize,
    /// Elements with a vector of their own, at least 1.
    pub count: usize,
}

impl VectorAt {
    /// Where element `e`'s vector starts.
    pub(super) fn of(&self, element: usize) -> usize {
        self.start + element.min(self.count - 1) * self.stride
    }

    /// The same as a tensor of its own, `[batch, 1, dim]`, for composed and differentiable operations.
    pub(super) fn gather(&self, slab: &Tensor<3>, dim: usize, batch: usize) -> Tensor<3> {
        let [blocks, rows, width] = slab.dims();
        let own = slab
            .clone()
            .reshape([blocks * rows, width])
            .narrow(0, self.start / width, self.count)
            .narrow(1, self.start % width, dim)
            .reshape([self.count, 1, dim]);
        if self.count == batch {
            return own;
        }
        let last = own.clone().narrow(0, self.count - 1, 1);
        let shared = last.repeat_dim(0, batch - self.count);
        Tensor::cat(vec![own, shared], 0)
    }
}
