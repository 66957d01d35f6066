//! A host's own device: shared, drawn on, lost, and too small.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use burn::tensor::{Tensor, TensorData};
use harmonica::{
    checkpoint::random_model,
    device::{
        DeviceError, DeviceFault, Engine, device_descriptor,
        interop::{ImagePainter, InteropError, TensorBuffer},
    },
    diffusion::{Guidance, GuidedChannels, Solver, Spacing},
    models::{Condition, Model, dit::DitConfig},
    report::image_from_values,
    sampler::{Event, Request, SampleError, Sampler, Settings},
};

pub struct Host {
    pub device: wgpu::Device,
    queue: wgpu::Queue,
    pub engine: Engine,
}

fn adapter() -> (wgpu::Instance, wgpu::Adapter) {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN;
    let instance = wgpu::Instance::new(descriptor);
    let adapter = pollster::block_on(instance.request_adapter(&Default::default()))
        .expect("these tests need a Vulkan driver: apt-get install mesa-vulkan-drivers");
    (instance, adapter)
}

impl Host {
    pub fn new() -> Self {
        let (instance, adapter) = adapter();
        let (device, queue) =
            pollster::block_on(adapter.request_device(&device_descriptor(&adapter))).unwrap();
        let engine = Engine::from_wgpu(instance, adapter, device.clone(), queue.clone()).unwrap();
        Self {
            device,
            queue,
            engine,
        }
    }

    /// Runs commands that fill a buffer of `size` bytes, and reads it.
    fn read(
        &self,
        size: u64,
        commands: impl FnOnce(&mut wgpu::CommandEncoder, &wgpu::Buffer),
    ) -> Vec<u8> {
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        commands(&mut encoder, &buffer);
        self.queue.submit([encoder.finish()]);
        buffer
            .slice(..)
            .map_async(wgpu::MapMode::Read, |mapped| mapped.unwrap());
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .unwrap();
        buffer.slice(..).get_mapped_range().unwrap().to_vec()
    }
}

/// Values of [-1.25, 1.25], different everywhere.
fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.37).sin() * 1.25).collect()
}

pub fn small_model(engine: &Engine) -> (Model, Settings) {
    let config = DitConfig {
        input_size: [8, 8],
        patch: 2,
        channels: 3,
        hidden: 32,
        blocks: 2,
        heads: 2,
        classes: 4,
        learned_sigma: false,
        timestep_shift: 0,
        mlp_norm_eps: 1e-6,
    };
    let (model, info) = random_model(config.architecture().unwrap(), 1, engine.device()).unwrap();
    let settings = Settings {
        steps: 6,
        spacing: Spacing::Even,
        solver: Solver::ddim(0.0).unwrap(),
        guidance: Guidance::new(2.0, GuidedChannels::All).unwrap(),
        clip_x0: info.clip_x0,
    };
    (model, settings)
}

pub fn request() -> Request {
    Request {
        conditions: Condition::classes(&[1, 2]),
        seed: 3,
        first: 0,
        noise: None,
        batch: 2,
    }
}

#[test]
fn a_tensor_buffer_holds_the_tensor_in_row_major_order() {
    let host = Host::new();
    let shape = [3, 5, 7, 2];
    let all = values(shape.iter().product());
    let tensor = Tensor::<4>::from_data(TensorData::new(all, shape), host.engine.device());
    // A view that starts somewhere, a permuted one, and the end of work that is still queued.
    for tensor in [
        tensor.clone().narrow(0, 1, 1),
        tensor.clone().permute([3, 0, 2, 1]),
        (tensor * 2.0).exp() - 1.0,
    ] {
        let expected: Vec<f32> = tensor
            .clone()
            .try_into_data()
            .unwrap()
            .try_into_vec()
            .unwrap();
        let source = TensorBuffer::new(tensor).unwrap();
        assert_eq!(source.size(), 4 * expected.len() as u64);
        let bytes = host.read(source.size(), |encoder, to| {
            encoder.copy_buffer_to_buffer(source.buffer(), source.offset(), to, 0, source.size());
        });
        assert_eq!(bytemuck::cast_slice::<u8, f32>(&bytes), expected);
    }
}

#[test]
fn a_picture_drawn_on_the_gpu_is_the_one_drawn_on_the_cpu() {
    let host = Host::new();
    let painter = ImagePainter::new(&host.engine, wgpu::TextureFormat::Rgba8Unorm).unwrap();
    for [channels, height, width] in [[3, 8, 8], [4, 17, 13], [1, 5, 9], [3, 32, 31]] {
        let all = values(3 * channels * height * width);
        let data = TensorData::new(all.clone(), [3, channels, height, width]);
        let images = Tensor::<4>::from_data(data, host.engine.device());
        let texture = painter
            .texture([height, width], wgpu::TextureUsages::COPY_SRC)
            .unwrap();
        painter.paint(images.clone(), 2, &texture).unwrap();
        let bytes = host.read(256 * height as u64, |encoder, buffer| {
            encoder.copy_texture_to_buffer(
                texture.as_image_copy(),
                wgpu::TexelCopyBufferInfo {
                    buffer,
                    layout: wgpu::TexelCopyBufferLayout {
                        offset: 0,
                        bytes_per_row: Some(256),
                        rows_per_image: None,
                    },
                },
                texture.size(),
            );
        });
        let shape = [channels, height, width];
        let expected = image_from_values(&all[2 * channels * height * width..], shape);
        for (x, y, pixel) in expected.enumerate_pixels() {
            let at = 256 * y as usize + 4 * x as usize;
            for c in 0..3 {
                let difference = bytes[at + c].abs_diff(pixel.0[c]);
                assert!(difference <= 1, "{shape:?} at {x}, {y}, {c}");
            }
            assert_eq!(bytes[at + 3], 255);
        }
        assert!(matches!(
            painter.paint(images, 3, &texture),
            Err(InteropError::NoSuchImage {
                image: 3,
                images: 3
            })
        ));
    }
}

#[test]
fn the_cpu_has_no_textures_and_says_so() {
    let engine = Engine::cpu();
    assert!(matches!(
        ImagePainter::new(&engine, wgpu::TextureFormat::Rgba8Unorm),
        Err(InteropError::NoGpu { .. })
    ));
    let tensor = Tensor::<1>::zeros([4], engine.device());
    assert!(matches!(
        TensorBuffer::new(tensor),
        Err(InteropError::NoGpu { .. })
    ));
}

#[test]
fn a_device_made_without_what_burn_uses_is_refused() {
    let (instance, adapter) = adapter();
    let (device, queue) = pollster::block_on(adapter.request_device(&Default::default())).unwrap();
    let refused = Engine::from_wgpu(instance, adapter, device, queue).unwrap_err();
    assert!(
        matches!(&refused, DeviceError::Unshared { .. }),
        "{refused}"
    );
    assert!(refused.to_string().contains("required_features"));
}

#[test]
fn a_device_lost_in_mid_run_is_a_typed_fault_and_a_new_one_does_the_work() {
    let host = Host::new();
    let (model, settings) = small_model(&host.engine);
    let sampler = Sampler::new(&model, settings, None).unwrap();
    let expected = sampler.sample(request()).unwrap();

    let sampler = sampler.with_engine(&host.engine).with_recovery(true);
    let mut run = sampler.run(request()).unwrap();
    for _ in 0..3 {
        run.next().unwrap().unwrap();
    }
    host.device.destroy();
    let error = run.find_map(Result::err).expect("a lost device is seen");
    assert!(
        matches!(&error, SampleError::Device(fault) if fault.is_lost()),
        "{error}"
    );
    // It stays lost, and everything on it can be dropped.
    assert!(host.engine.fault().is_some_and(|fault| fault.is_lost()));
    let state = run.state().expect("two steps were finished").clone();
    assert_eq!(state.step(), 2);
    drop(run);
    drop(sampler);
    drop(model);
    host.engine.close();

    let other = Host::new();
    let (model, settings) = small_model(&other.engine);
    let sampler = Sampler::new(&model, settings, None).unwrap();
    let again = sampler
        .resume(state)
        .unwrap()
        .find_map(|event| match event.unwrap() {
            Event::Images { x0, .. } => Some(x0),
            _ => None,
        });
    assert_eq!(again.unwrap(), expected);
    assert_eq!(other.engine.fault(), None);
}

#[test]
fn an_allocation_beyond_the_limits_is_a_typed_fault_and_the_device_goes_on() {
    let host = Host::new();
    let most = host.engine.report().max_buffer_bytes.unwrap() as usize;
    let large = Tensor::<1>::zeros([most / 4 + 1024], host.engine.device()) + 1.0;
    let error = large.try_into_data().unwrap_err();
    let fault = host.engine.fault_of(&error);
    assert!(matches!(fault, DeviceFault::TooLarge { .. }), "{fault}");

    let (model, settings) = small_model(&host.engine);
    let sampler = Sampler::new(&model, settings, None).unwrap();
    assert!(sampler.sample(request()).is_ok());
    assert_eq!(host.engine.fault(), None);
}

#[test]
fn an_error_of_the_hosts_own_is_the_hosts() {
    let host = Host::new();
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = seen.clone();
    host.engine.on_host_error(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let _ = host.device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: u64::MAX / 2,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: false,
    });
    assert_eq!(seen.load(Ordering::Relaxed), 1);
    assert_eq!(host.engine.fault(), None);
}

#[test]
fn closing_a_device_leaves_the_others_alone() {
    let (one, two) = (Host::new(), Host::new());
    let images = |host: &Host| {
        let (model, settings) = small_model(&host.engine);
        Sampler::new(&model, settings, None)
            .unwrap()
            .sample(request())
    };
    let expected = images(&one).unwrap();
    let started = std::time::Instant::now();
    one.engine.close();
    // Half a minute is what burn waits for a thread that something still uses.
    assert!(started.elapsed().as_secs() < 25);
    assert_eq!(images(&two).unwrap(), expected);
    assert_eq!(two.engine.fault(), None);
    let three = Host::new();
    assert_eq!(images(&three).unwrap(), expected);
}

#[test]
fn memory_is_flat_over_many_runs() {
    let host = Host::new();
    let (model, settings) = small_model(&host.engine);
    let sampler = Sampler::new(&model, settings, None).unwrap();
    let reserved = || {
        let usage = host.engine.device().memory_pool_usage().unwrap();
        usage.bytes_reserved
    };
    for _ in 0..10 {
        sampler.sample(request()).unwrap();
    }
    let before = reserved();
    for _ in 0..40 {
        sampler.sample(request()).unwrap();
    }
    // Launch parameters are cached up to a bound: a few kilobytes may still come.
    let after = reserved();
    assert!(after <= before + before / 100, "{before} to {after}");
    drop(sampler);
    drop(model);
    host.engine.release_memory();
    assert!(reserved() < before);
}
