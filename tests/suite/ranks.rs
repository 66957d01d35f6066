//! Several processes for one job.

use std::process::Command;

const OPEN_MPI: &str = "OMPI_COMM_WORLD_SIZE";
const SLURM: &str = "SLURM_STEP_NUM_TASKS";

/// Runs the command as one of two processes that a starter started, which says so in this variable.
fn as_one_of_two(variable: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_harmonica"))
        .env(variable, "2")
        .args(arguments)
        .output()
        .unwrap();
    (out.status.code(), String::from_utf8(out.stderr).unwrap())
}

#[test]
fn a_command_for_one_process_says_so() {
    for variable in [OPEN_MPI, SLURM] {
        let (code, said) = as_one_of_two(variable, &["devices"]);
        assert_eq!(code, Some(2));
        assert_eq!(
            said,
            "error: 2 processes were started together, and this command is for one; sample, compare and train router share work out\n"
        );
    }
}

#[cfg(not(feature = "mpi"))]
#[test]
fn a_program_that_cannot_share_work_out_does_not_do_it_twice() {
    let (code, said) = as_one_of_two(OPEN_MPI, &["sample", "--out", "never.png"]);
    assert_eq!(code, Some(2));
    assert!(
        said.contains("--features mpi makes one that shares work out"),
        "{said}"
    );
    assert!(!std::path::Path::new("never.png").exists());
}

#[cfg(all(feature = "mpi", unix))]
mod mpi {
    use std::{
        fs,
        path::Path,
        process::{Child, Command, Output, Stdio},
        time::{Duration, Instant},
    };

    use harmonica::{checkpoint::read_named_tensors, metrics::max_abs_error};
    use serde_json::Value;

    use crate::common::{golden, within};

    fn mpirun() -> Command {
        let mut mpirun = Command::new("mpirun");
        mpirun.args(["--allow-run-as-root", "--oversubscribe"]);
        mpirun
    }

    /// The command by so many ranks; by one, without MPI.
    fn command(ranks: usize, arguments: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_harmonica");
        let mut command = match ranks {
            1 => Command::new(program),
            _ => {
                let mut mpirun = mpirun();
                mpirun.args(["-n", &ranks.to_string(), program]);
                mpirun
            }
        };
        command.args(arguments);
        command
    }

    fn run(ranks: usize, arguments: &[&str]) -> Output {
        let out = command(ranks, arguments).output();
        out.expect("these tests start ranks with mpirun: on Debian, apt install openmpi-bin")
    }

    fn succeed(ranks: usize, arguments: &[&str]) -> Output {
        let out = run(ranks, arguments);
        assert!(
            out.status.success(),
            "{ranks} ranks, {arguments:?}: {}",
            said(&out)
        );
        out
    }

    fn said(out: &Output) -> String {
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    fn json(ranks: usize, arguments: &[&str]) -> Value {
        serde_json::from_slice(&succeed(ranks, arguments).stdout).unwrap()
    }

    /// `words`, with the tiny model on the CPU and what is to be written.
    fn tiny<'a>(words: &'a str, model: &'a str, out: &'a Path) -> Vec<&'a str> {
        let mut all: Vec<&str> = words.split(' ').collect();
        all.extend(["--model", model, "--heads", "4", "--device", "cpu"]);
        all.extend(["--out", out.to_str().unwrap()]);
        all
    }

    fn same(files: &[&str], one: &Path, other: &Path, what: &str) {
        for file in files {
            let read = |folder: &Path| fs::read(folder.join(file)).unwrap();
            assert!(read(one) == read(other), "{what}: {file} differs");
        }
    }

    /// The routers of 1, 2 and 3 processes.
    #[test]
    fn a_router_is_trained_to_the_same_bytes() {
        let at = tempfile::tempdir().unwrap();
        let model = golden("tiny-a.pt");
        let words = "train router --steps 5 --passes 4 --batch 5 --micro-batch 2 --target-cur 0.4 --lambda-every 10";
        let files = [
            "router.safetensors",
            "router.schedule.json",
            "train.jsonl",
            "router.png",
        ];
        let train = |ranks: usize| {
            let out = at.path().join(ranks.to_string());
            succeed(ranks, &tiny(words, model.to_str().unwrap(), &out));
            out
        };
        let alone = train(1);
        for ranks in [2, 3] {
            same(&files, &alone, &train(ranks), &format!("{ranks} ranks"));
        }
        // What two ranks made, one goes on with, and the other way round.
        let more = |ranks: usize, out: &Path| {
            let words = words.replace("--passes 4", "--passes 6") + " --resume";
            succeed(ranks, &tiny(&words, model.to_str().unwrap(), out));
        };
        more(2, &alone);
        more(1, &at.path().join("2"));
        same(&files, &alone, &at.path().join("2"), "resumed");
    }

    /// Candidate tables by rank, draws by rank.
    #[test]
    fn a_search_finds_the_same() {
        let at = tempfile::tempdir().unwrap();
        let model = golden("tiny-a.pt");
        let words = "train router --steps 6 --draws 6 --sweeps 2 --target-speedup 1.5,2";
        let find = |ranks: usize| {
            let out = at.path().join(ranks.to_string());
            succeed(ranks, &tiny(words, model.to_str().unwrap(), &out));
            out
        };
        let alone = find(1);
        for ranks in [2, 3] {
            let files = [
                "ladder.json",
                "train.jsonl",
                "router-speedup1.5.schedule.json",
                "router-speedup2.schedule.json",
            ];
            same(&files, &alone, &find(ranks), &format!("{ranks} ranks"));
        }
    }

    #[test]
    fn pictures_come_from_all_ranks_in_order() {
        let at = tempfile::tempdir().unwrap();
        let model = golden("tiny-a.pt");
        let model = model.to_str().unwrap();
        let tensors = |ranks: usize| at.path().join(format!("{ranks}.safetensors"));
        let sample = |ranks: usize, batch: &str, out: &Path| {
            let file = tensors(ranks);
            let words =
                format!("sample --steps 4 --count 7 --first 3 --schedule fora:2 --json{batch}");
            let mut all = tiny(&words, model, out);
            all.extend(["--save-tensors", file.to_str().unwrap()]);
            json(ranks, &all)
        };
        let values = |ranks: usize| {
            read_named_tensors(&tensors(ranks), &["samples"])
                .unwrap()
                .remove(0)
                .1
        };
        let (grid, folder) = (at.path().join("grid.png"), at.path().join("folder"));
        let alone = sample(1, " --batch 2", &grid);
        let (picture, expected) = (fs::read(&grid).unwrap(), values(1));
        sample(1, " --batch 2", &folder);
        let single = fs::read_dir(&folder).unwrap().count();
        assert_eq!(single, 7);
        // More ranks than batches leave some idle.
        for ranks in [2, 5] {
            let shared = sample(ranks, " --batch 2", &grid);
            assert!(
                fs::read(&grid).unwrap() == picture,
                "{ranks} ranks: the grid differs"
            );
            assert_eq!(values(ranks), expected);
            assert_eq!(shared["ranks"], ranks);
            for same in ["images", "macs", "macs_full", "cur", "peak_cache_bytes"] {
                assert_eq!(shared[same], alone[same], "{same}");
            }
            let again = at.path().join(format!("folder-{ranks}"));
            let listed = sample(ranks, " --batch 2", &again);
            assert_eq!(listed["files"].as_array().unwrap().len(), 7);
            for file in fs::read_dir(&folder).unwrap() {
                let name = file.unwrap().file_name();
                same(&[name.to_str().unwrap()], &folder, &again, "a picture");
            }
        }
        // Batches of their own choice: rounding at most.
        sample(2, "", &grid);
        within(
            "images of two ranks",
            max_abs_error(&values(2), &expected),
            1e-5,
        );
    }

    #[test]
    fn a_comparison_is_over_the_images_of_all() {
        let model = golden("tiny-a.pt");
        let at = tempfile::tempdir().unwrap();
        let compare = |ranks: usize| {
            let page = at.path().join(format!("{ranks}.html"));
            let arguments = [
                "compare",
                "--model",
                model.to_str().unwrap(),
                "--heads",
                "4",
                "--device",
                "cpu",
                "--steps",
                "5",
                "--count",
                "7",
                "--schedules",
                "fora:2,taylor:2",
                "--truth",
                "9",
                "--json",
                "--html",
                page.to_str().unwrap(),
                "--pictures",
                "5",
            ];
            let found = json(ranks, &arguments);
            let page = fs::read_to_string(&page).unwrap();
            (found, page.matches("data:image/png").count())
        };
        let ((alone, pictures), (shared, as_many)) = (compare(1), compare(3));
        assert!(
            pictures > 10 && pictures == as_many,
            "{pictures} and {as_many}"
        );
        let rows = |of: &Value| of["rows"].as_array().unwrap().clone();
        assert_eq!(
            (alone["images"].clone(), shared["ranks"].clone()),
            (7.into(), 3.into())
        );
        assert_eq!(rows(&alone).len(), rows(&shared).len());
        for (alone, shared) in rows(&alone).iter().zip(rows(&shared)) {
            assert_eq!(alone["schedule"], shared["schedule"]);
            for figure in [
                "mse",
                "mse_standard_error",
                "mse_true",
                "ssim",
                "cur",
                "macs_ratio",
            ] {
                let number = |of: &Value| {
                    of[figure]
                        .as_f64()
                        .unwrap_or_else(|| panic!("no {figure} in {of}"))
                };
                let off = (number(alone) - number(&shared)).abs() / number(alone).abs().max(1e-12);
                within(format!("{figure} of three ranks"), off, 1e-4);
            }
        }
    }

    fn wait_until(mut so: impl FnMut() -> bool, what: &str) {
        let started = Instant::now();
        while !so() {
            assert!(
                started.elapsed() < Duration::from_secs(120),
                "waited in vain for {what}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The process of a rank that this `mpirun` started.
    fn process_of(mpirun: &Child, rank: usize) -> i32 {
        let children = format!("/proc/{0}/task/{0}/children", mpirun.id());
        let children = fs::read_to_string(children).unwrap();
        let wanted = format!("OMPI_COMM_WORLD_RANK={rank}\0");
        let of_rank = |child: &&str| {
            let environment = fs::read(format!("/proc/{child}/environ")).unwrap_or_default();
            String::from_utf8_lossy(&environment).contains(&wanted)
        };
        children
            .split_whitespace()
            .find(of_rank)
            .unwrap()
            .parse()
            .unwrap()
    }

    fn signal(process: i32, name: &str) {
        let sent = Command::new("kill")
            .args(["-s", name, &process.to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    /// A rank is killed, or asked to stop; what was saved goes on to the bytes of a training that nobody disturbed.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_rank_that_is_killed_ends_the_job_which_goes_on() {
        let at = tempfile::tempdir().unwrap();
        let model = golden("tiny-a.pt");
        let model = model.to_str().unwrap();
        let words = "train router --steps 6 --passes 60 --batch 4 --micro-batch 1 --save-every 2 --target-cur 0.4";
        let whole = at.path().join("whole");
        succeed(1, &tiny(words, model, &whole));
        let disturbed = at.path().join("disturbed");
        let lines = || {
            fs::read_to_string(disturbed.join("train.jsonl")).map_or(0, |text| text.lines().count())
        };
        for (turn, name) in ["KILL", "TERM"].into_iter().enumerate() {
            let resumed = words.to_owned() + if turn > 0 { " --resume" } else { "" };
            let mut mpirun = command(2, &tiny(&resumed, model, &disturbed));
            let mut mpirun = mpirun.stderr(Stdio::piped()).spawn().unwrap();
            let before = lines();
            wait_until(|| lines() >= before + 40, "passes");
            signal(process_of(&mpirun, 1), name);
            wait_until(|| mpirun.try_wait().unwrap().is_some(), "the end");
            let out = mpirun.wait_with_output().unwrap();
            assert!(!out.status.success());
            if name == "TERM" {
                assert!(said(&out).contains("saved in"), "{}", said(&out));
            }
        }
        succeed(2, &tiny(&format!("{words} --resume"), model, &disturbed));
        same(
            &["router.safetensors", "router.schedule.json", "train.jsonl"],
            &whole,
            &disturbed,
            "after two ends",
        );
    }

    #[test]
    fn what_goes_wrong_is_said_once() {
        let at = tempfile::tempdir().unwrap();
        let model = golden("tiny-a.pt");
        let model = model.to_str().unwrap();
        // On all of them: used wrongly.
        let out = run(
            2,
            &tiny(
                "sample --steps 4 --guidance nonsense",
                model,
                &at.path().join("a.png"),
            ),
        );
        assert!(!out.status.success());
        let out = run(
            2,
            &tiny("sample --steps 0", model, &at.path().join("a.png")),
        );
        assert_eq!(said(&out).matches("error: ").count(), 1, "{}", said(&out));
        // On the first alone, which writes: the folder holds a run already.
        let folder = at.path().join("run");
        let words = "train router --steps 3 --passes 1 --batch 2 --micro-batch 1 --beta 1e-3";
        succeed(2, &tiny(words, model, &folder));
        let out = run(2, &tiny(words, model, &folder));
        assert!(!out.status.success());
        assert_eq!(said(&out).matches("error: ").count(), 1, "{}", said(&out));
        assert!(said(&out).contains("holds a run already"), "{}", said(&out));
        // On another alone: it was not asked for the same.
        let program = env!("CARGO_BIN_EXE_harmonica");
        let other = at.path().join("other");
        let asked = |seed: &'static str| {
            let mut all = vec!["-n", "1", program];
            all.extend(tiny(words, model, &other));
            all.extend(["--seed", seed]);
            all.into_iter().map(String::from).collect::<Vec<_>>()
        };
        let out = mpirun()
            .args(asked("1"))
            .arg(":")
            .args(asked("2"))
            .output()
            .unwrap();
        assert!(!out.status.success());
        assert!(
            said(&out).contains("error: rank 1 has another model, run or setting than rank 0"),
            "{}",
            said(&out)
        );
        assert!(!other.join("router.safetensors").exists());
    }
}
