"""The launch scripts: their dry runs, what they run where the services are stand-ins, and resuming.

A stand-in for gcloud, kubectl, srun and the like is a script on PATH that records its arguments: it
shows that a dry run runs nothing, and that what it prints is what is run without it.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
# What a shell would take apart, expand or run, were it not quoted.
ODD = "a b'c\"d$(touch hacked);e\\f"
PLACE = {"NAME": f"slice {ODD}", "PROJECT": f"project {ODD}", "ZONE": f"zone {ODD}"}
RUN = ["--config=configs/cifar10_hint.py", f"--workdir=gs://bucket/{ODD}", "--config.name=$HOME"]

RECORD = """#!/usr/bin/env bash
{ printf '%s\\0' "${0##*/}" "$@"; echo; } >>"$TRACE"
"""


@pytest.fixture
def bench(tmp_path):
    """PATH with stand-ins, and a copy of the scripts in a checkout of their own."""
    return Bench(tmp_path)


class Bench:
    def __init__(self, folder):
        self.trace, self.bin = folder / "trace", folder / "bin"
        self.checkout = folder / "retrieval_jax"
        shutil.copytree(LAUNCH, self.checkout / "launch")
        self.bin.mkdir()
        for name in ("gcloud", "kubectl", "srun", "scontrol", "sbatch", "git", "nohup"):
            self.stand_in(name)
        path = f"{self.bin}:{os.environ['PATH']}"
        self.env = {"PATH": path, "TRACE": str(self.trace), "HOME": str(folder)}

    def stand_in(self, name, then=""):
        (self.bin / name).write_text(RECORD + then)
        (self.bin / name).chmod(0o755)

    def python(self, program):
        """The Python of the checkout's environment, which runs a program of the shell."""
        python = self.checkout / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(RECORD + program)
        python.chmod(0o755)

    def __call__(self, script, *arguments, code=0, **env):
        run = subprocess.run(
            [self.checkout / "launch" / script, *arguments],
            cwd=self.checkout,
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == code, run.stderr
        assert not list(self.checkout.parent.rglob("hacked"))
        return run

    def commands(self):
        """What the stand-ins were called with, oldest first."""
        text = self.trace.read_text() if self.trace.exists() else ""
        return [record.split("\0") for record in text.split("\0\n")[:-1]]


def lines(run):
    """The commands that a dry run prints, as words."""
    return [shlex.split(line) for line in run.stdout.splitlines()]


def test_shellcheck_finds_nothing():
    assert len(SCRIPTS) == 6
    shellcheck = Path(sys.executable).parent / "shellcheck"
    found = subprocess.run(
        [shellcheck, "-x", "-P", "SCRIPTDIR", *SCRIPTS], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    "action", ["create", "install", "run", "follow", "resume", "stop", "delete"]
)
def test_tpu_dry_run_prints_and_runs_nothing(bench, action):
    printed = lines(bench("tpu.sh", "--dry-run", action, *RUN, **PLACE))
    assert bench.commands() == []
    called = [line for line in printed if line[0] == "gcloud"]
    assert called
    for line in called:
        assert {f"--project={PLACE['PROJECT']}", f"--zone={PLACE['ZONE']}"} <= set(line)
        assert PLACE["NAME"] in line or f"{PLACE['NAME']}:retrieval_jax.tar.gz" in line
    if action in ("run", "resume"):
        (command,) = (w for w in called[-1] if w.startswith("--command="))
        words = shlex.split(command.removeprefix("--command="))
        assert words[-len(RUN) - 1 :] == ["run", *RUN] and "--worker=all" in called[-1]


def test_tpu_runs_what_its_dry_run_prints(bench):
    answer = "[[ $* != *describe* ]] || echo ACTIVE\n"
    bench.stand_in("gcloud", answer)
    for action in ("create", "install", "delete"):
        bench.trace.unlink(missing_ok=True)
        printed = lines(bench("tpu.sh", "--dry-run", action, **PLACE | {"SPOT": "1"}))
        assert bench.commands() == []
        bench("tpu.sh", action, **PLACE | {"SPOT": "1"})
        assert bench.commands() == [line for line in printed if line[0] != "mkdir"]
        assert ("--spot" in bench.commands()[0]) == (action == "create")


@pytest.mark.parametrize(
    ("states", "steps"),
    [
        (["ACTIVE"], ["describe", "ssh"]),
        (
            ["SUSPENDED", "WAITING_FOR_RESOURCES", "ACTIVE"],
            ["describe", "delete", "create", "describe", "describe", "git", "scp", "ssh", "ssh"],
        ),
        (["PROVISIONING", "ACTIVE"], ["describe", "describe", "git", "scp", "ssh", "ssh"]),
        (["", "ACTIVE"], ["describe", "create", "describe", "git", "scp", "ssh", "ssh"]),
    ],
)
def test_tpu_resumes_from_every_state(bench, tmp_path, states, steps):
    (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
    bench.stand_in(
        "gcloud",
        "[[ $* == *describe* ]] || exit 0\n"
        'state=$(head -n 1 "$HOME/states"); sed -i 1d "$HOME/states"\n'
        'echo "$state"; [[ $state ]]\n',
    )
    bench("tpu.sh", "resume", *RUN, **PLACE | {"POLL_SECONDS": "0"})
    known = {"describe", "delete", "create", "scp", "ssh", "git"}
    assert [next(w for w in words if w in known) for words in bench.commands()] == steps


def test_tpu_run_reaches_python_on_the_host_word_by_word(bench, tmp_path):
    """gcloud ssh stands in for itself: it runs the command in the home directory."""
    bench.python("sleep 0.1")
    (bench.bin / "nohup").unlink()
    (bench.bin / "gcloud").write_text(
        "#!/usr/bin/env bash\nfor word; do [[ $word != --command=* ]] || command=${word#*=}; done\n"
        'cd && exec bash -c "$command"\n'
    )
    bench("tpu.sh", "run", *RUN, **PLACE)
    assert eventually(bench.commands) == [["python", "-m", "retrieval_jax.main", *RUN]]


def test_tpu_wants_a_place_and_a_bucket(bench):
    assert "PROJECT is not set" in bench("tpu.sh", "create", NAME="x", code=2).stderr
    on_disk = bench("tpu.sh", "run", "--workdir=runs/x", code=2, **PLACE)
    assert "give --workdir=gs://DIR" in on_disk.stderr
    assert "'craete'" in bench("tpu.sh", "craete", code=2, **PLACE).stderr
    bench.stand_in("gcloud", "[[ $* != *describe* ]] || echo FAILED\n")
    assert "the slice is FAILED" in bench("tpu.sh", "create", code=2, **PLACE).stderr


def test_host_dry_runs(bench):
    for action, words in {
        ("install", "gpu"): ["-c", "constraints.txt", ".[gpu,gcs]"],
        ("run", *RUN): ["python", "-m", "retrieval_jax.main", *RUN],
        ("follow",): ["-F", "runs/launch.log"],
        ("stop",): ["-TERM", "the process in runs/launch.pid"],
    }.items():
        printed = lines(bench("host.sh", "--dry-run", *action))[-1]
        assert [
            Path(w).name if w.endswith("/python") else w for w in printed[-len(words) :]
        ] == words
    assert bench.commands() == [] and not (bench.checkout / "runs").exists()
    assert "install gpu or tpu, not 'cpu'" in bench("host.sh", "install", "cpu", code=2).stderr


def test_host_runs_one_run_and_stops_it(bench):
    (bench.bin / "nohup").unlink()
    bench.python("trap 'echo saved; exit 75' TERM; echo started; while :; do sleep 0.05; done")
    bench("host.sh", "run", *RUN)
    log = bench.checkout / "runs" / "launch.log"
    assert eventually(lambda: "started" in log.read_text())
    assert "a run goes on here already" in bench("host.sh", "run", *RUN, code=2).stderr
    bench("host.sh", "stop")
    assert eventually(lambda: log.read_text() == "started\nsaved\n")
    # The lock is free once the last process has ended.
    assert eventually(lambda: try_again(bench))
    bench("host.sh", "stop")


def try_again(bench):
    launch = bench.checkout / "launch" / "host.sh"
    return not subprocess.run([launch, "run", *RUN], env=bench.env, capture_output=True).returncode


def eventually(condition, seconds=20):
    """The first true value of a condition; its last one when the time is over."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


@pytest.mark.parametrize("last", [0, 1, 2, 134])
def test_resume_runs_again_on_75_alone(tmp_path, last):
    program = f'echo "$1" >>log; [[ $(wc -l <log) -lt 3 ]] && exit 75; exit {last}'
    command = [LAUNCH / "resume.sh", "bash", "-c", program, "program", ODD]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == last
    assert (tmp_path / "log").read_text() == f"{ODD}\n" * 3
    assert run.stderr.count("resuming") == 2


def test_resume_hands_a_stop_on_and_does_not_run_again(tmp_path):
    program = "trap 'sleep 0.2; echo saved; exit 75' TERM; echo up; while :; do sleep 0.05; done"
    command = [LAUNCH / "resume.sh", "bash", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout.readline() == "up\n"
            run.send_signal(signal.SIGTERM)
            assert run.communicate(timeout=60)[0] == "saved\n"
            assert run.returncode == 75
        finally:
            run.kill()


@pytest.mark.parametrize("code", [0, 2, 75])
def test_slurm_requeues_on_75_alone(bench, code):
    srun = [
        *["srun", "--kill-on-bad-exit=0", ".venv/bin/python", "-m", "retrieval_jax.main"],
        *RUN,
    ]
    requeue = ["scontrol", "requeue", "1234"]
    job = {"SLURM_JOB_ID": "1234", "SLURM_SUBMIT_DIR": str(bench.checkout)}
    assert lines(bench("slurm.sh", "--dry-run", *RUN, **job)) == [srun, requeue]
    assert bench.commands() == []
    bench.stand_in("srun", f"exit {code}")
    bench("slurm.sh", *RUN, code=code, **job)
    assert bench.commands() == ([srun, requeue] if code == 75 else [srun])


def test_slurm_wants_a_workdir_and_the_checkout(bench, tmp_path):
    assert "give --workdir=DIR" in bench("slurm.sh", "--config=x", code=2).stderr
    away = bench("slurm.sh", *RUN, code=2, SLURM_SUBMIT_DIR=str(tmp_path))
    assert "from the checkout" in away.stderr


JOB = {"NAME": "hint", "IMAGE": f"registry/{ODD}:1", "NAMESPACE": f"space {ODD}", "HOSTS": "3"}


def test_kubernetes_creates_what_its_dry_run_prints(bench):
    printed = bench("kubernetes.sh", "--dry-run", "create", *RUN, **JOB).stdout
    command, manifest = printed.split("\n", 1)
    assert bench.commands() == []
    bench.stand_in("kubectl", 'cat >"$HOME/manifest"')
    bench("kubernetes.sh", "create", *RUN, **JOB)
    called = ["kubectl", "apply", f"--namespace={JOB['NAMESPACE']}", "--filename=-"]
    assert bench.commands() == [called] and shlex.split(command)[:4] == called
    assert (bench.checkout.parent / "manifest").read_text() + "END\n" == manifest


def test_kubernetes_manifest(bench):
    multiline = "--config.name=two\nlines"
    printed = bench("kubernetes.sh", "--dry-run", "create", *RUN, multiline, **JOB).stdout
    service, job = yaml.safe_load_all(printed.split("\n", 1)[1].removesuffix("END\n"))
    assert (service["kind"], service["spec"]["clusterIP"]) == ("Service", "None")
    name = service["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert (name, job["kind"], job["metadata"]["name"]) == ("hint", "Job", "hint")
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    on_codes = {
        rule["action"]: rule["onExitCodes"]["values"]
        for rule in spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert on_codes == {"FailJob": [2], "Ignore": [75]}
    pod = spec["template"]["spec"]
    # Rules for exit codes are valid with this policy alone.
    assert (pod["restartPolicy"], pod["subdomain"]) == ("Never", name)
    (container,) = pod["containers"]
    assert container["image"] == JOB["IMAGE"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    # Kubernetes reads $$( as $(, and expands $(NAME).
    given = [word.replace("$(", "$$(") for word in [*RUN, multiline]]
    assert container["args"][: len(given)] == given
    assert container["args"][len(given) :] == [
        "--config.distributed.coordinator=hint-0.hint:8476",
        "--config.distributed.processes=3",
        "--config.distributed.process=$(JOB_COMPLETION_INDEX)",
    ]


def test_kubernetes_alone_follow_and_delete(bench):
    alone = bench("kubernetes.sh", "--dry-run", "create", *RUN, **JOB | {"HOSTS": "1"}).stdout
    assert "distributed" not in alone
    for action, words in {
        "follow": ["logs"],
        "delete": ["delete", "job/hint", "service/hint"],
    }.items():
        (printed,) = lines(bench("kubernetes.sh", "--dry-run", action, **JOB))
        assert {*words, f"--namespace={JOB['NAMESPACE']}"} <= set(printed)
        bench.trace.unlink(missing_ok=True)
        bench("kubernetes.sh", action, **JOB)
        assert bench.commands() == [printed]
    wrong = bench("kubernetes.sh", "create", *RUN, code=2, **JOB | {"GPUS": "8; x"})
    assert "whole numbers above 0" in wrong.stderr
