//! Images as rows of patches, and back.

use burn::tensor::Tensor;

/// Images `[B, C, H, W]` as rows of patches, `[B, tokens, C·p²]`.
pub fn patches_of(x: Tensor<4>, patch: usize) -> Tensor<3> {
    let [batch, channels, height, width] = x.dims();
    let (rows, columns) = (height / patch, width / patch);
    x.reshape([batch, channels, rows, patch, columns, patch])
        .permute([0, 2, 4, 1, 3, 5])
        .reshape([batch, rows * columns, channels * patch * patch])
}

/// Rows of output patches `[B, tokens, p²·C]` as images `[B, C, H, W]` of `[rows, columns]` patches.
pub fn images_of(patches: Tensor<3>, [rows, columns]: [usize; 2], patch: usize) -> Tensor<4> {
    let [batch, _, numbers] = patches.dims();
    let channels = numbers / (patch * patch);
    patches
        .reshape([batch, rows, columns, patch, patch, channels])
        .permute([0, 5, 1, 3, 2, 4])
        .reshape([batch, channels, rows * patch, columns * patch])
}

/// Images `[B, C, H, W]` as rows of output patches, `[B, tokens, p²·C]`: what [`images_of`] reads.
pub fn output_patches_of(images: Tensor<4>, patch: usize) -> Tensor<3> {
    let [batch, channels, height, width] = images.dims();
    let (rows, columns) = (height / patch, width / patch);
    images
        .reshape([batch, channels, rows, patch, columns, patch])
        .permute([0, 2, 4, 3, 5, 1])
        .reshape([batch, rows * columns, patch * patch * channels])
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn output_patches_are_read_as_the_images_they_came_from() {
        let values: Vec<f32> = (0..2 * 3 * 4 * 6).map(|i| i as f32).collect();
        let data = TensorData::new(values, [2, 3, 4, 6]);
        let images = Tensor::<4>::from_data(data, &Device::flex());
        let patches = output_patches_of(images.clone(), 2);
        assert_eq!(patches.dims(), [2, 6, 12]);
        let read = |x: Tensor<4>| x.try_into_data().unwrap().try_into_vec::<f32>().unwrap();
        assert_eq!(read(images_of(patches, [2, 3], 2)), read(images));
    }
}
