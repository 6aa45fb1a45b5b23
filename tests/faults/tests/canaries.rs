//! Every planted bug is caught by the suites' own checks, and the same cases pass without it.

use std::process::Command;

use ringmain_client::sync::canary::Canary;

/// Cases that catch a bug each time they run: suite and filter.
fn catchers(canary: Canary) -> &'static [(&'static str, &'static str)] {
    match canary {
        Canary::NoRecheck => &[("kill-sweep", "one::Park(Consume)::Short")],
        Canary::WakerClearsFlag => {
            &[("kill-sweep", "one::SendAndWake"), ("stress", "calm::spsc::1p1c::fence::64x64")]
        }
        Canary::PublishBeforeCopy => {
            &[("kill-sweep", "one::Send(20, 0)::Empty"), ("kill-sweep", "one::Send(150, 0)::Empty")]
        }
        Canary::ReleaseBeforeCopy => {
            &[("kill-sweep", "one::Receive::Short"), ("stress", "calm::spsc::1p1c::fence::64x64")]
        }
        Canary::ForgottenContinuation => {
            &[("kill-sweep", "mpmc::one::Batch::Empty"), ("kill-sweep", "spsc::one::Batch::Empty")]
        }
        Canary::RepairWithoutProof => &[("kill-sweep", "mpmc::one::Receive::Bystanders")],
        Canary::HeadBeforeUse => &[("kill-sweep", "mpmc::one::Receive::Short")],
        Canary::DropWithoutCounting => &[("kill-sweep", "mpmc::one::SendDropping(20, 0)::Full")],
        Canary::BiasLookedAtOnce => &[("kill-sweep", "biased::stopped::Consume::20::3")],
        Canary::HoldoutIgnored => &[("kill-sweep", "biased::stopped::Produce::150::10")],
    }
}

/// Runs cases in a process of their own: exit code and output.
fn run(suite: &str, filter: &str, canary: Option<&str>) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmain-faults"));
    command.args([suite, filter]).env_remove("RINGMAIN_CANARY");
    for variable in ["RINGMAIN_SWEEP", "RINGMAIN_HOSTILE", "RINGMAIN_STRESS"] {
        command.env_remove(variable);
    }
    if let Some(name) = canary {
        command.env("RINGMAIN_CANARY", name);
    }
    let output = command.output().expect("the program of this package runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), text)
}

fn check(canary: Canary) {
    let (_, name) = Canary::ALL
        .into_iter()
        .find(|(known, _)| *known == canary)
        .expect("every canary has a name");
    for (suite, filter) in catchers(canary) {
        let (code, text) = run(suite, filter, None);
        assert_eq!(code, Some(0), "{suite} {filter} fails without a planted bug:\n{text}");
        assert!(!text.contains(" 0 passed"), "{suite} {filter} names no case");
        let (code, text) = run(suite, filter, Some(name));
        assert_eq!(code, Some(1), "{suite} {filter} does not notice {name}:\n{text}");
        // Its own checks, not a time-out.
        assert!(text.contains("test result: FAILED."), "{suite} {filter}, {name}:\n{text}");
        assert!(!text.contains("hung") && !text.contains("come to an end"), "{name}:\n{text}");
    }
}

macro_rules! canaries {
    ($($test:ident: $canary:ident,)*) => {
        $(
            #[test]
            fn $test() {
                check(Canary::$canary);
            }
        )*

        #[test]
        fn all_canaries_have_a_test() {
            assert_eq!([$(Canary::$canary),*].len(), Canary::ALL.len());
        }
    };
}

canaries! {
    no_recheck: NoRecheck,
    waker_clears_flag: WakerClearsFlag,
    publish_before_copy: PublishBeforeCopy,
    release_before_copy: ReleaseBeforeCopy,
    forgotten_continuation: ForgottenContinuation,
    repair_without_proof: RepairWithoutProof,
    head_before_use: HeadBeforeUse,
    drop_without_counting: DropWithoutCounting,
    bias_looked_at_once: BiasLookedAtOnce,
    holdout_ignored: HoldoutIgnored,
}
