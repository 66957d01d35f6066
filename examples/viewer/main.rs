//! Watch denoising live, cached against uncached, and change the schedule by hand.
//!
//! ```sh
//! cargo run --release --features viewer --example viewer                 # the bundled model
//! cargo run --release --features viewer --example viewer -- model.safetensors
//! ```
//! The window owns the GPU device; the engine shares it, and draws into the window's textures.

mod state;
mod ui;
mod window;
mod worker;

use std::{
    error::Error,
    path::Path,
    sync::mpsc::{self, Sender},
    thread::JoinHandle,
};

use harmonica::{
    checkpoint::{LoadOptions, ModelSpec, load_model},
    device::interop::ImagePainter,
    report::{Tile, grid, image_from_values, write_png},
};
use winit::{
    application::ApplicationHandler,
    event::WindowEvent,
    event_loop::{ActiveEventLoop, ControlFlow, EventLoop, EventLoopProxy},
    window::WindowId,
};

use state::{Job, State, Update};
use ui::Shown;
use window::Graphics;
use worker::{Pictures, Worker};

/// Side of the pictures in texels; models of other sizes are enlarged to it.
const SIDE: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let spec = std::env::args()
        .nth(1)
        .map_or(Ok(ModelSpec::Bundled), |spec| spec.parse())?;
    let event_loop = EventLoop::<Update>::with_user_event().build()?;
    event_loop.set_control_flow(ControlFlow::Wait);
    let mut app = App {
        spec,
        proxy: event_loop.create_proxy(),
        open: None,
        failed: None,
    };
    event_loop.run_app(&mut app)?;
    app.failed.map_or(Ok(()), Err)
}

struct App {
    spec: ModelSpec,
    proxy: EventLoopProxy<Update>,
    open: Option<Open>,
    failed: Option<Box<dyn Error>>,
}

/// Everything once there is a window.
struct Open {
    graphics: Graphics,
    shown: Shown,
    state: State,
    jobs: Option<Sender<Job>>,
    worker: Option<JoinHandle<()>>,
}

impl Open {
    fn new(
        event_loop: &ActiveEventLoop,
        spec: &ModelSpec,
        proxy: EventLoopProxy<Update>,
    ) -> Result<Self, Box<dyn Error>> {
        let mut graphics = Graphics::open(event_loop)?;
        let engine = graphics.engine.clone();
        let (model, info) = load_model(spec, LoadOptions::default(), engine.device())?;
        let painter = ImagePainter::new(&engine, wgpu::TextureFormat::Rgba8Unorm)?;
        let [_, height, width] = info.outline.latents.shape();
        let longest = height.max(width);
        let size = [SIDE * height / longest, SIDE * width / longest];
        let picture = || painter.texture(size, wgpu::TextureUsages::TEXTURE_BINDING);
        let pictures = Pictures {
            uncached: picture()?,
            cached: picture()?,
            difference: picture()?,
        };
        let shown = graphics.register(&pictures);
        let worker = Worker {
            engine,
            model,
            painter,
            pictures,
            tell: Box::new(move |update| proxy.send_event(update).is_ok()),
        };
        let (jobs, waiting) = mpsc::channel();
        let worker = std::thread::Builder::new()
            .name("sampling".into())
            .spawn(move || worker.run(waiting))?;
        let mut open = Self {
            graphics,
            shown,
            state: State::new(info)?,
            jobs: Some(jobs),
            worker: Some(worker),
        };
        open.start();
        Ok(open)
    }

    /// Sends the worker what the knobs ask for.
    fn start(&mut self) {
        match self.state.job() {
            Ok(job) => {
                let gone = self
                    .jobs
                    .as_ref()
                    .is_none_or(|jobs| jobs.send(job).is_err());
                if gone {
                    self.state.message = Some(Err("the sampling thread has ended".into()));
                }
            }
            Err(error) => self.state.message = Some(Err(error.to_string())),
        }
    }

    fn frame(&mut self) {
        let (state, shown) = (&mut self.state, self.shown);
        let mut asked = ui::Asked::default();
        let again = self.graphics.frame(|ui| {
            // A frame may be laid out twice; a click counts in either.
            let now = ui::draw(ui, state, &shown);
            asked.run |= now.run;
            asked.save |= now.save;
        });
        if asked.run {
            self.start();
        }
        if asked.save {
            let saved = self.save().map_err(|error| error.to_string());
            self.state.message =
                Some(saved.map(|()| "saved out/viewer.png and out/viewer.schedule.json".into()));
        }
        if again || asked != ui::Asked::default() {
            self.graphics.window.request_redraw();
        }
    }

    /// The pictures side by side and the schedule.
    fn save(&self) -> Result<(), Box<dyn Error>> {
        let state = &self.state;
        let (Some(uncached), Some(cached)) = (&state.uncached.values, &state.cached.values) else {
            return Err("wait for both pictures: there is nothing to save before".into());
        };
        let shape = state.info.outline.latents.shape();
        let tiles = [("uncached", uncached), ("cached", cached)].map(|(label, values)| Tile {
            image: image_from_values(values, shape),
            label: label.into(),
        });
        write_png(&grid(&tiles, 2), Path::new("out/viewer.png"))?;
        state
            .schedule_file()?
            .write(Path::new("out/viewer.schedule.json"))?;
        Ok(())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Without a sender the worker ends within a step; its tensors go before the device does.
        self.jobs = None;
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

impl ApplicationHandler<Update> for App {
    fn resumed(&mut self, event_loop: &ActiveEventLoop) {
        if self.open.is_some() {
            return;
        }
        match Open::new(event_loop, &self.spec, self.proxy.clone()) {
            Ok(open) => {
                open.graphics.window.request_redraw();
                self.open = Some(open);
            }
            Err(error) => {
                self.failed = Some(error);
                event_loop.exit();
            }
        }
    }

    fn user_event(&mut self, _: &ActiveEventLoop, update: Update) {
        if let Some(open) = &mut self.open {
            open.state.update(update);
            open.graphics.window.request_redraw();
        }
    }

    fn window_event(&mut self, event_loop: &ActiveEventLoop, _: WindowId, event: WindowEvent) {
        let Some(open) = &mut self.open else {
            return;
        };
        let graphics = &mut open.graphics;
        let response = graphics.egui.on_window_event(&graphics.window, &event);
        if response.repaint {
            graphics.window.request_redraw();
        }
        match event {
            WindowEvent::CloseRequested => {
                self.open = None;
                event_loop.exit();
            }
            WindowEvent::Resized(size) => {
                graphics.resize(size.width, size.height);
                graphics.window.request_redraw();
            }
            WindowEvent::RedrawRequested => open.frame(),
            _ => {}
        }
    }
}
