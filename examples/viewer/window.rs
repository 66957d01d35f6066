//! The window's side of the shared device: surface and egui renderer.

use std::{error::Error, sync::Arc};

use egui_wgpu::{Renderer, RendererOptions, ScreenDescriptor};
use harmonica::device::{Engine, device_descriptor};
use winit::{event_loop::ActiveEventLoop, window::Window};

use crate::{ui::Shown, worker::Pictures};

pub struct Graphics {
    pub window: Arc<Window>,
    pub engine: Engine,
    device: wgpu::Device,
    queue: wgpu::Queue,
    surface: wgpu::Surface<'static>,
    configuration: wgpu::SurfaceConfiguration,
    renderer: Renderer,
    pub egui: egui_winit::State,
}

impl Graphics {
    /// A window with a device of its own, which the engine then shares.
    pub fn open(event_loop: &ActiveEventLoop) -> Result<Self, Box<dyn Error>> {
        let attributes = Window::default_attributes()
            .with_title("harmonica viewer")
            .with_inner_size(winit::dpi::LogicalSize::new(1280.0, 900.0));
        let window = Arc::new(event_loop.create_window(attributes)?);
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_with_display_handle(
            Box::new(event_loop.owned_display_handle()),
        ));
        let surface = instance.create_surface(window.clone())?;
        let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            compatible_surface: Some(&surface),
            ..Default::default()
        }))?;
        let (device, queue) =
            pollster::block_on(adapter.request_device(&device_descriptor(&adapter)))?;

        let size = window.inner_size();
        let mut configuration = surface
            .get_default_config(&adapter, size.width.max(1), size.height.max(1))
            .ok_or("the adapter cannot draw to this window")?;
        // egui blends in gamma space, and wants a format that does not encode by itself.
        let formats = surface.get_capabilities(&adapter).formats;
        if let Some(format) = formats.iter().find(|format| !format.is_srgb()) {
            configuration.format = *format;
        }
        configuration.present_mode = wgpu::PresentMode::AutoVsync;
        surface.configure(&device, &configuration);

        let renderer = Renderer::new(&device, configuration.format, RendererOptions::default());
        let context = egui::Context::default();
        let egui = egui_winit::State::new(
            context,
            egui::ViewportId::ROOT,
            &window,
            Some(window.scale_factor() as f32),
            window.theme(),
            Some(device.limits().max_texture_dimension_2d as usize),
        );
        let engine = Engine::from_wgpu(instance, adapter, device.clone(), queue.clone())?;
        engine.on_host_error(|error| eprintln!("drawing the window: {error}"));
        Ok(Self {
            window,
            engine,
            device,
            queue,
            surface,
            configuration,
            renderer,
            egui,
        })
    }

    /// Makes the worker's pictures known to egui.
    pub fn register(&mut self, pictures: &Pictures) -> Shown {
        let mut register = |texture: &wgpu::Texture| {
            let view = texture.create_view(&Default::default());
            self.renderer
                .register_native_texture(&self.device, &view, wgpu::FilterMode::Nearest)
        };
        Shown {
            uncached: register(&pictures.uncached),
            cached: register(&pictures.cached),
            difference: register(&pictures.difference),
        }
    }

    pub fn resize(&mut self, width: u32, height: u32) {
        // A minimised window has no size.
        if width > 0 && height > 0 {
            self.configuration.width = width;
            self.configuration.height = height;
            self.surface.configure(&self.device, &self.configuration);
        }
    }

    /// Draws a frame; whether egui wants another one at once.
    pub fn frame(&mut self, mut draw: impl FnMut(&mut egui::Ui)) -> bool {
        let input = self.egui.take_egui_input(&self.window);
        let context = self.egui.egui_ctx().clone();
        let mut output = context.run_ui(input, |ui| draw(ui));
        self.egui
            .handle_platform_output(&self.window, std::mem::take(&mut output.platform_output));
        for (id, deltas) in output.textures_delta.set.drain() {
            for delta in deltas {
                self.renderer
                    .update_texture(&self.device, &self.queue, id, &delta);
            }
        }
        let pixels_per_point = output.pixels_per_point;
        let shapes = context.tessellate(std::mem::take(&mut output.shapes), pixels_per_point);
        self.present(&shapes, pixels_per_point);
        for id in output.textures_delta.free.drain() {
            self.renderer.free_texture(&id);
        }
        output
            .viewport_output
            .values()
            .any(|viewport| viewport.repaint_delay.is_zero())
    }

    fn present(&mut self, shapes: &[egui::ClippedPrimitive], pixels_per_point: f32) {
        let frame = match self.surface.get_current_texture() {
            wgpu::CurrentSurfaceTexture::Success(frame)
            | wgpu::CurrentSurfaceTexture::Suboptimal(frame) => frame,
            // A frame less; the next one has a fresh surface.
            _ => {
                self.surface.configure(&self.device, &self.configuration);
                return;
            }
        };
        let screen = ScreenDescriptor {
            size_in_pixels: [self.configuration.width, self.configuration.height],
            pixels_per_point,
        };
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let commands =
            self.renderer
                .update_buffers(&self.device, &self.queue, &mut encoder, shapes, &screen);
        let view = frame.texture.create_view(&Default::default());
        let pass = encoder.begin_render_pass(&wgpu::RenderPassDescriptor {
            label: Some("window"),
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
        self.renderer
            .render(&mut pass.forget_lifetime(), shapes, &screen);
        self.queue
            .submit(commands.into_iter().chain([encoder.finish()]));
        self.window.pre_present_notify();
        self.queue.present(frame);
    }
}
