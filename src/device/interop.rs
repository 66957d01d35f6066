//! Results on the host's own wgpu device, without passing through host memory.
//!
//! [`TensorBuffer`] is the `wgpu::Buffer` behind a tensor; [`ImagePainter`] draws images into the host's textures.
//! Both work on the engine's queue, so what the host submits afterwards sees them without waiting.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use burn::{
    cubecl::wgpu::WgpuServer,
    tensor::{DType, Tensor},
};
use burn_wgpu::{AutoCompiler, CubeBackend, Wgpu, into_contiguous};
use wgpu::util::DeviceExt;

use super::{DeviceFault, Engine};

/// Why a result cannot be had on the GPU.
#[derive(Debug, thiserror::Error)]
pub enum InteropError {
    /// The CPU backend, or a burn device that the engine did not open.
    #[error("{device} is no wgpu device of this engine: open a GPU, or read the values instead")]
    NoGpu { device: String },
    /// A tensor of half floats or integers.
    #[error("the tensor holds {found}, expected 32-bit floats")]
    Type { found: String },
    /// An image beyond the batch.
    #[error("there is no image {image}: the tensor holds {images}")]
    NoSuchImage { image: usize, images: usize },
    /// A texture that the painter was not made for.
    #[error("the texture is {found}, expected {expected}")]
    Texture { found: String, expected: String },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceFault),
}

/// The buffer behind a tensor, contiguous in row-major order, in 32-bit floats.
///
/// burn neither frees, moves nor overwrites it while this value lives: keep it until what reads it is submitted. The
/// buffer has the usages `STORAGE`, `COPY_SRC` and `COPY_DST`, and may hold other tensors outside
/// [`offset`](Self::offset)` .. offset + `[`size`](Self::size).
pub struct TensorBuffer {
    buffer: wgpu::Buffer,
    offset: u64,
    size: u64,
    _pinned: Box<dyn Any + Send>,
}

impl TensorBuffer {
    /// Submits the work that makes the tensor, and tells where it will be. Waits for nothing.
    ///
    /// Call it on the thread that polled the run; on another one, `Device::sync` on that thread comes first.
    ///
    /// # Errors
    /// [`InteropError::NoGpu`], [`InteropError::Type`]; [`InteropError::Device`] if the tensor could not be made.
    pub fn new<const D: usize>(tensor: Tensor<D>) -> Result<Self, InteropError> {
        // A failing device makes burn panic between here and its server.
        catch_unwind(AssertUnwindSafe(|| Self::resolve(tensor))).unwrap_or_else(|payload| {
            let message = payload
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| {
                    payload
                        .downcast_ref::<&str>()
                        .map(|text| (*text).to_owned())
                })
                .unwrap_or_else(|| "burn panicked".into());
            Err(DeviceFault::Failed { message }.into())
        })
    }

    fn resolve<const D: usize>(tensor: Tensor<D>) -> Result<Self, InteropError> {
        let device = tensor.device();
        let fused = tensor
            .try_into_primitive::<Wgpu>()
            .map_err(|_| InteropError::NoGpu {
                device: format!("{device:?}"),
            })?;
        let client = fused.client.clone();
        let tensor = into_contiguous(client.resolve_tensor_float::<CubeBackend>(fused));
        if tensor.dtype != DType::F32 {
            return Err(InteropError::Type {
                found: format!("{:?}", tensor.dtype),
            });
        }
        let failed = |error: &dyn std::fmt::Display| DeviceFault::Failed {
            message: error.to_string(),
        };
        let pinned = tensor
            .client
            .get_resource::<WgpuServer<AutoCompiler>>(tensor.handle.clone())
            .map_err(|e| failed(&e))?;
        // Commands wait in an encoder of the thread that issued them, and a view in one of the thread that made it.
        tensor.client.flush().map_err(|e| failed(&e))?;
        let made_on = tensor.handle.stream;
        made_on
            .executes(|| tensor.client.flush())
            .map_err(|e| failed(&e))?;
        let resource = pinned.resource();
        Ok(Self {
            buffer: resource.buffer.clone(),
            offset: resource.offset,
            size: resource.size,
            _pinned: Box::new(pinned),
        })
    }

    /// The buffer, which is larger than the tensor.
    pub fn buffer(&self) -> &wgpu::Buffer {
        &self.buffer
    }

    /// Where the tensor begins, in bytes: a multiple of 4.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of the tensor.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// Draws images `[B, C, H, W]` in [-1, 1] into textures of one format.
///
/// 3 channels are RGB, 4 a linear preview of latents, otherwise the first one is grey, as
/// [`crate::report::image_from_values`] does on the CPU.
#[derive(Debug)]
pub struct ImagePainter {
    device: wgpu::Device,
    queue: wgpu::Queue,
    format: wgpu::TextureFormat,
    layout: wgpu::BindGroupLayout,
    pipeline: wgpu::RenderPipeline,
    /// What the start of a storage binding must be a multiple of.
    alignment: u64,
}

/// `Picture` of the shader.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Picture {
    first: u32,
    channels: u32,
    height: u32,
    width: u32,
    rows: u32,
    columns: u32,
    encodes: u32,
    padding: u32,
}

impl ImagePainter {
    /// A painter of textures of `format`, which must be a colour format that can be rendered to.
    ///
    /// # Errors
    /// [`InteropError::NoGpu`] on the CPU, [`InteropError::Device`] if the format or the device cannot do it.
    pub fn new(engine: &Engine, format: wgpu::TextureFormat) -> Result<Self, InteropError> {
        let setup = engine.wgpu().ok_or_else(|| InteropError::NoGpu {
            device: engine.report().device.clone(),
        })?;
        let device = &setup.device;
        let (layout, pipeline) = checked(device, || {
            let module =
                device.create_shader_module(wgpu::include_wgsl!("../../shaders/paint_image.wgsl"));
            let entry = |binding, ty| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::FRAGMENT,
                ty: wgpu::BindingType::Buffer {
                    ty,
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            };
            let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some("paint_image"),
                entries: &[
                    entry(0, wgpu::BufferBindingType::Uniform),
                    entry(1, wgpu::BufferBindingType::Storage { read_only: true }),
                ],
            });
            let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some("paint_image"),
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            });
            let pipeline = device.create_render_pipeline(&wgpu::RenderPipelineDescriptor {
                label: Some("paint_image"),
                layout: Some(&pipeline_layout),
                vertex: wgpu::VertexState {
                    module: &module,
                    entry_point: Some("cover"),
                    compilation_options: Default::default(),
                    buffers: &[],
                },
                primitive: Default::default(),
                depth_stencil: None,
                multisample: Default::default(),
                fragment: Some(wgpu::FragmentState {
                    module: &module,
                    entry_point: Some("paint"),
                    compilation_options: Default::default(),
                    targets: &[Some(format.into())],
                }),
                multiview_mask: None,
                cache: None,
            });
            (layout, pipeline)
        })?;
        Ok(Self {
            device: device.clone(),
            queue: setup.queue.clone(),
            format,
            layout,
            pipeline,
            alignment: device.limits().min_storage_buffer_offset_alignment.into(),
        })
    }

    /// A new texture of the image's own size, with `RENDER_ATTACHMENT` and the usages asked for.
    ///
    /// # Errors
    /// [`InteropError::Device`] if there is no memory for it.
    pub fn texture(
        &self,
        [height, width]: [usize; 2],
        usages: wgpu::TextureUsages,
    ) -> Result<wgpu::Texture, InteropError> {
        checked(&self.device, || {
            self.device.create_texture(&wgpu::TextureDescriptor {
                label: Some("harmonica image"),
                size: wgpu::Extent3d {
                    width: width as u32,
                    height: height as u32,
                    depth_or_array_layers: 1,
                },
                mip_level_count: 1,
                sample_count: 1,
                dimension: wgpu::TextureDimension::D2,
                format: self.format,
                usage: usages | wgpu::TextureUsages::RENDER_ATTACHMENT,
                view_formats: &[],
            })
        })
    }

    /// Draws image `image` of `images` over the whole of `target`, whose first mip level it fills, enlarging pixel by pixel.
    /// Submitted when it returns; threads as for [`TensorBuffer::new`].
    ///
    /// # Errors
    /// [`InteropError`].
    pub fn paint(
        &self,
        images: Tensor<4>,
        image: usize,
        target: &wgpu::Texture,
    ) -> Result<(), InteropError> {
        let [count, channels, height, width] = images.dims();
        if image >= count {
            return Err(InteropError::NoSuchImage {
                image,
                images: count,
            });
        }
        if target.format() != self.format {
            return Err(InteropError::Texture {
                found: format!("{:?}", target.format()),
                expected: format!("{:?}", self.format),
            });
        }
        let source = TensorBuffer::new(images)?;
        // A binding starts at an aligned place; the rest of the way is counted in the shader.
        let start = source.offset / self.alignment * self.alignment;
        let before = source.offset - start;
        let picture = Picture {
            first: (before / 4) as u32 + (image * channels * height * width) as u32,
            channels: channels as u32,
            height: height as u32,
            width: width as u32,
            rows: target.height(),
            columns: target.width(),
            encodes: self.format.is_srgb().into(),
            padding: 0,
        };
        checked(&self.device, || {
            let uniform = self
                .device
                .create_buffer_init(&wgpu::util::BufferInitDescriptor {
                    label: Some("paint_image"),
                    contents: bytemuck::bytes_of(&picture),
                    usage: wgpu::BufferUsages::UNIFORM,
                });
            let bindings = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("paint_image"),
                layout: &self.layout,
                entries: &[
                    wgpu::BindGroupEntry {
                        binding: 0,
                        resource: uniform.as_entire_binding(),
                    },
                    wgpu::BindGroupEntry {
                        binding: 1,
                        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                            buffer: &source.buffer,
                            offset: start,
                            size: wgpu::BufferSize::new(before + source.size),
                        }),
                    },
                ],
            });
            let view = target.create_view(&wgpu::TextureViewDescriptor {
                mip_level_count: Some(1),
                ..Default::default()
            });
            let mut encoder = self.device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_render_pass(&wgpu::RenderPassDescriptor {
                label: Some("paint_image"),
                color_attachments: &[Some(wgpu::RenderPassColorAttachment {
                    view: &view,
                    depth_slice: None,
                    resolve_target: None,
                    ops: wgpu::Operations {
                        load: wgpu::LoadOp::Clear(wgpu::Color::BLACK),
                        store: wgpu::StoreOp::Store,
                    },
                })],
                depth_stencil_attachment: None,
                timestamp_writes: None,
                occlusion_query_set: None,
                multiview_mask: None,
            });
            pass.set_pipeline(&self.pipeline);
            pass.set_bind_group(0, &bindings, &[]);
            pass.draw(0..3, 0..1);
            drop(pass);
            self.queue.submit([encoder.finish()]);
        })
    }
}

/// Runs wgpu calls of this thread with their errors caught.
fn checked<T>(device: &wgpu::Device, calls: impl FnOnce() -> T) -> Result<T, InteropError> {
    use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
    let scopes = [Internal, OutOfMemory, Validation].map(|filter| device.push_error_scope(filter));
    let made = calls();
    // Scopes are popped in reverse order; on native their results are there at once.
    let errors: Vec<wgpu::Error> = scopes
        .into_iter()
        .rev()
        .filter_map(|scope| pollster::block_on(scope.pop()))
        .collect();
    match errors.first() {
        Some(error) => Err(DeviceFault::from_wgpu(error).into()),
        None => Ok(made),
    }
}
