//! Small matrix products on the CPU, in registers.

/// Columns of a product: one or a few vectors of numbers.
pub(super) const LANES: usize = 16;
/// Rows of a group. With 16 lanes, that many sums stay in registers also where vectors are short.
pub(super) const ROWS: usize = 4;

/// `out[g][r][l] = Σ_k groups[g][k][r]·by[k][l]`.
pub(super) struct Products<'a> {
    /// `[n][k][4]`
    pub groups: &'a [f32],
    /// `[k][16]`
    pub by: &'a [f32],
    /// Whether the products are added to what `out` holds.
    pub onto: bool,
    /// `[n][4][16]`
    pub out: &'a mut [f32],
}

impl pulp::WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        match S::F32_LANES {
            // Long vectors leave registers for two groups, whose sums do not wait for each other.
            16 => self.run::<S, 1, 2>(simd),
            8 => self.run::<S, 2, 1>(simd),
            4 => self.run::<S, 4, 1>(simd),
            _ => self.run::<S, LANES, 1>(simd),
        }
    }
}

impl Products<'_> {
    /// With `LANES` as `V` vectors, `G` groups at a time.
    #[inline(always)]
    fn run<S: pulp::Simd, const V: usize, const G: usize>(self, simd: S) {
        let by = self.by.as_chunks::<LANES>().0;
        let groups = self.groups.as_chunks::<ROWS>().0;
        let out = self.out.as_chunks_mut::<LANES>().0;
        let tiles = groups.chunks(by.len() * G).zip(out.chunks_mut(ROWS * G));
        for (groups, out) in tiles {
            if groups.len() == by.len() * G {
                tile::<S, V, G>(simd, groups, by, self.onto, out);
            } else {
                let rest = groups
                    .chunks_exact(by.len())
                    .zip(out.chunks_exact_mut(ROWS));
                for (group, out) in rest {
                    tile::<S, V, 1>(simd, group, by, self.onto, out);
                }
            }
        }
    }
}

/// The rows of `G` groups.
#[inline(always)]
fn tile<S: pulp::Simd, const V: usize, const G: usize>(
    simd: S,
    groups: &[[f32; ROWS]],
    by: &[[f32; LANES]],
    onto: bool,
    out: &mut [[f32; LANES]],
) {
    let mut sums = [[[simd.splat_f32s(0.0); V]; ROWS]; G];
    if onto {
        for (sums, out) in sums.as_flattened_mut().iter_mut().zip(&*out) {
            sums.copy_from_slice(S::as_simd_f32s(out).0);
        }
    }
    let mut rows = [groups; G];
    for (g, rows) in rows.iter_mut().enumerate() {
        *rows = &groups[g * by.len()..][..by.len()];
    }
    for (k, b) in by.iter().enumerate() {
        let (b, _) = S::as_simd_f32s(b);
        for (sums, rows) in sums.iter_mut().zip(&rows) {
            for (sums, a) in sums.iter_mut().zip(rows[k]) {
                let a = simd.splat_f32s(a);
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = simd.mul_add_f32s(a, *b, *sum);
                }
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(sums.as_flattened()) {
        S::as_mut_simd_f32s(out).0.copy_from_slice(sums);
    }
}
