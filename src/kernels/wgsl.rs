//! Launching the shaders of `shaders/`.

use burn::backend::wgpu::{CubeTensor, SourceTemplate};
use burn::cubecl::{
    CubeCount, CubeDim, CubeKernel, ExecutionMode, PrecompiledSource,
    ir::{AddressType, ElemType, UIntKind, metadata::Info as NoInfo},
    prelude::{KernelDefinition, KernelId, KernelMetadata, KernelSettings, Scope},
    server::{KernelArguments, MetadataBindingInfo},
};

use super::{Hardware, VectorAt};

/// Threads of a workgroup, for work that is one number (or two) a thread.
pub(super) const THREADS: u32 = 256;
/// WebGPU's limit of workgroups along a dimension.
const MAX_GROUPS: u32 = 65_535;

/// A shader and the constants that its text is completed with.
#[derive(Debug, Clone)]
pub(super) struct Shader {
    pub name: &'static str,
    pub source: &'static str,
    pub constants: Vec<(&'static str, u32)>,
}

impl Shader {
    /// A shader whose only constant is its workgroup's size.
    pub fn flat(name: &'static str, source: &'static str) -> Self {
        Self {
            name,
            source,
            constants: vec![("threads", THREADS)],
        }
    }
}

/// A shader as burn runs it.
#[derive(Debug)]
struct Program {
    shader: Shader,
    workgroup: CubeDim,
    mode: ExecutionMode,
}

/// Whether a counter goes into every loop, so that none runs forever, as burn's own wrapper of shaders would have it. Ours all end,
/// and on a GPU loops that can be unrolled are worth much; the compilers of software drivers unroll them for minutes.
fn mode_on(hardware: Hardware) -> ExecutionMode {
    match hardware.software {
        true => ExecutionMode::Checked,
        false => ExecutionMode::Unchecked,
    }
}

impl CubeKernel for Program {
    fn define(&self) -> KernelDefinition {
        // What the shader's text says stands in for a definition.
        let settings = KernelSettings::new(self.workgroup.0, self.mode, AddressType::U32);
        KernelDefinition {
            body: Scope::root(settings.clone()),
            settings,
            info: NoInfo::default(),
        }
    }

    fn source(&self) -> Option<PrecompiledSource> {
        let Shader {
            source, constants, ..
        } = &self.shader;
        let text = constants
            .iter()
            .fold(SourceTemplate::new(*source), |text, (name, value)| {
                text.register(*name, value.to_string())
            });
        Some(PrecompiledSource {
            source: text.complete(),
            entrypoint_name: "main".into(),
            lang: "wgsl",
        })
    }
}

impl KernelMetadata for Program {
    fn id(&self) -> KernelId {
        // Nothing else makes the program. burn compiles by the mode named here.
        let Shader {
            name, constants, ..
        } = &self.shader;
        KernelId::new::<Self>()
            .info((*name, constants.clone()))
            .mode(self.mode)
    }

    fn address_type(&self) -> ElemType {
        UIntKind::U32.into()
    }
}

/// Words after the buffers: what a launch wants to know. Equal words are uploaded once.
#[derive(Debug, Default)]
pub(super) struct Info(Vec<u32>);

impl Info {
    pub fn of(words: &[usize]) -> Self {
        Self::default().with(words)
    }

    /// What the kernels that add to `[B, tokens, dim]` under a gate want to know first: numbers in all, of an element and
    /// of a token, then how the gates of the elements lie.
    pub fn gated([batch, tokens, dim]: [usize; 3], gate: VectorAt) -> Self {
        let element = tokens * dim;
        Self::of(&[batch * element, element, dim, gate.stride, gate.count])
    }

    pub fn with(mut self, words: &[usize]) -> Self {
        // Sizes on a device are below 2^32: wgpu's own buffer limits are.
        self.0.extend(words.iter().map(|w| *w as u32));
        self
    }

    pub fn with_f32(mut self, values: &[f64]) -> Self {
        self.0.extend(values.iter().map(|v| (*v as f32).to_bits()));
        self
    }

    fn binding(mut self) -> MetadataBindingInfo {
        if self.0.len() % 2 == 1 {
            self.0.push(0);
        }
        let words = self.0.chunks_exact(2);
        MetadataBindingInfo::custom(
            words
                .map(|two| u64::from(two[0]) | u64::from(two[1]) << 32)
                .collect(),
        )
    }
}

/// Runs `shader` over `groups` workgroups, spread over two dimensions where one is too short.
pub(super) fn launch(
    shader: Shader,
    threads: u32,
    groups: usize,
    buffers: &[&CubeTensor],
    info: Info,
) {
    let Some(first) = buffers.first() else {
        return;
    };
    let client = first.client.clone();
    let groups = groups as u32;
    let columns = groups.clamp(1, MAX_GROUPS);
    let mut arguments = KernelArguments::new();
    for tensor in buffers {
        arguments = arguments.with_buffer(tensor.handle.clone().binding());
    }
    arguments.info = info.binding();
    client.launch(
        Box::new(Program {
            shader,
            workgroup: CubeDim::new_1d(threads),
            mode: mode_on(Hardware::of(&first.device)),
        }),
        CubeCount::Static(columns, groups.div_ceil(columns), 1),
        arguments,
    );
}

/// Runs a [`Shader::flat`] over `count` threads.
pub(super) fn launch_flat(shader: Shader, count: usize, buffers: &[&CubeTensor], info: Info) {
    launch(
        shader,
        THREADS,
        count.div_ceil(THREADS as usize),
        buffers,
        info,
    );
}

/// A tensor of the same shape to write to.
pub(super) fn empty_like(x: &CubeTensor) -> CubeTensor {
    empty(x, x.meta.shape().clone())
}

/// A tensor of `like`'s type on its device.
pub(super) fn empty(like: &CubeTensor, shape: burn::tensor::Shape) -> CubeTensor {
    let numbers = shape.num_elements();
    empty_within(like, shape, numbers)
}

/// The same, at the beginning of room for so many numbers in f32.
pub(super) fn empty_within(
    like: &CubeTensor,
    shape: burn::tensor::Shape,
    room: usize,
) -> CubeTensor {
    let bytes = room * size_of::<f32>();
    CubeTensor::new_contiguous(
        like.client.clone(),
        like.device.clone(),
        shape,
        like.client.empty(bytes),
        like.dtype,
    )
}

/// A tensor that may be written in place: itself if nobody else holds it, otherwise a copy.
pub(super) fn owned(x: CubeTensor) -> CubeTensor {
    let x = burn::backend::wgpu::into_contiguous(x);
    if x.can_mut() { x } else { x.copy() }
}

/// `[B, tokens, dim]` of a tensor of rank 3.
pub(super) fn dims(x: &CubeTensor) -> [usize; 3] {
    let shape = x.meta.shape();
    [shape[0], shape[1], shape[2]]
}
