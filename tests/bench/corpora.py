"""Real dumps of real processes for the benchmark: podman and CRIU's, made in the testbed.

Each corpus is one program in a container of its own. What its memory is like decides what compression is worth.
"""

import os
import shutil
import subprocess
import sys
import time

# Gaussian doubles, as numerical programs hold them: zstd takes off a few percent.
NUMBERS = """
import array, random, sys, time
values = array.array('d', (random.gauss(0, 1) for _ in range(1 << 17)))
memory = [array.array('d', (v * (k + 1) for v in values)) for k in range(int(sys.argv[1]))]
print('ready', flush=True)
while True: time.sleep(1)
"""

RANDOM = """
import os, sys, time
memory = [os.urandom(1 << 20) for _ in range(int(sys.argv[1]))]
print('ready', flush=True)
while True: time.sleep(1)
"""

# Text and numbers as programs keep them, of which a part changes when told so: every 20th page for 5 %, in runs of one.
CHURN = """
import random, signal, sys, time
generator = random.Random(1)
words = [generator.randbytes(generator.randrange(2, 9)).hex().encode() for _ in range(4096)]
memory = bytearray()
while len(memory) < int(sys.argv[1]) << 20:
    memory += b' '.join(generator.choices(words, k=1 << 17))
del memory[int(sys.argv[1]) << 20:]
pages = len(memory) // 4096
def change(percent):
    for page in generator.sample(range(pages), pages * percent // 100):
        memory[page * 4096:page * 4096 + 64] = generator.randbytes(64)
    print('changed', percent, flush=True)
for number, percent in ((signal.SIGUSR1, 1), (signal.SIGUSR2, 5), (signal.SIGHUP, 50)):
    signal.signal(number, lambda *_, percent=percent: change(percent))
print('ready', flush=True)
while True: time.sleep(1)
"""

# Computes all the time, changes 5 % of its pages in 10 s, a page at a time, and says how far it is.
WORKER = """
import hashlib, random, sys, time
generator = random.Random(1)
memory = bytearray(generator.randbytes(1 << 20)) * int(sys.argv[1])
pages = len(memory) // 4096
sample = generator.randbytes(1 << 16)
begun = said = time.monotonic()
done = changed = 0
print('ready', flush=True)
while True:
    hashlib.sha256(sample).digest()
    done += 1
    now = time.monotonic()
    if changed < (now - begun) / 10 * pages // 20:
        page = generator.randrange(pages)
        memory[page * 4096:page * 4096 + 64] = generator.randbytes(64)
        changed += 1
    if now - said >= 0.05:
        said = now
        print('done', done, now, flush=True)
"""

NODE = """
const objects = [];
for (let k = 0; k < process.argv[1] * 4200; k++) objects.push({id: k, name: 'object ' + k, values: [k, k * 0.37, k % 7], tags: ['a' + k % 91]});
console.log('ready');
setInterval(() => { objects[0].id++; }, 1000);
"""

REDIS = """
redis-server --save '' --enable-debug-command yes --dir /tmp --unixsocket /tmp/redis.sock & server=$!
until redis-cli ping >/dev/null 2>&1; do sleep 0.1; done
redis-cli debug populate $(($1 * 1700)) key 512 >/dev/null
echo ready; wait $server
"""

SIGNALS = {1: "USR1", 5: "USR2", 50: "HUP"}


# No program of the benchmark takes so many seconds, except when it hangs.
LONGEST = 600


class Failed(Exception):
    """What a part of the benchmark was to measure cannot be measured."""


def run(*command, **options):
    """Runs to the end; the program's words are shown only when it fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=LONGEST, **options)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(command)} did not end within {LONGEST} s") from None
    if done.returncode:
        raise Failed(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


class Corpora:
    """Containers of one base image, and dumps of them in one folder."""

    def __init__(self, work):
        self.work = work
        self.dumps = 0
        self.import_base(f"{work}/base")

    def import_base(self, root):
        """A base image of the testbed's own programs and what they need; Debian's /lib is a link."""
        os.makedirs(f"{root}/tmp")
        for folder in ("lib", "lib64", "bin"):
            os.makedirs(f"{root}/usr/{folder}")
            os.symlink(f"usr/{folder}", f"{root}/{folder}")
        programs = [shutil.which(name) for name in ("python3", "node", "redis-server", "redis-cli", "bash", "sleep", "seq")]
        files = set(programs)
        for program in programs:
            files.update(word for word in run("ldd", program).split() if word.startswith("/"))
        for file in files:
            os.makedirs(os.path.dirname(root + file), exist_ok=True)
            shutil.copy(file, root + file)
        library = f"/usr/lib/python3.{sys.version_info.minor}"
        shutil.copytree(library, root + library, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "test"))
        # Debian's node reads parts of itself from there.
        shutil.copytree("/usr/share/nodejs", f"{root}/usr/share/nodejs")
        pack = subprocess.Popen(["tar", "-c", "-C", root, "."], stdout=subprocess.PIPE)
        run("podman", "import", "--quiet", "-", "localhost/bench:1", stdin=pack.stdout)
        shutil.rmtree(root)

    def start(self, name, mib):
        """Starts the program of this name with so many mebibytes; returns its container."""
        commands = {
            "numbers": ["python3", "-c", NUMBERS],
            "random": ["python3", "-c", RANDOM],
            "churn": ["python3", "-c", CHURN],
            "worker": ["python3", "-c", WORKER],
            "node": ["node", "--max-old-space-size=4096", "-e", NODE],
            "redis": ["bash", "-c", REDIS, "redis"],
        }
        container = f"bench-{name}"
        run("podman", "run", "--detach", "--name", container, "localhost/bench:1", *commands[name.split(".")[0]], str(mib))
        self.wait(container, "ready")
        return container

    def wait(self, container, word, times=1):
        deadline = time.monotonic() + LONGEST
        while run("podman", "logs", container).count(word) < times:
            if run("podman", "inspect", "--format", "{{.State.Status}}", container).strip() != "running":
                raise Failed(f"the program in {container} died: " + subprocess.getoutput(f"podman logs {container}"))
            if time.monotonic() > deadline:
                raise Failed(f"the program in {container} did not say {word!r} within {LONGEST} s")
            time.sleep(0.2)

    def change(self, container, percent):
        """Changes this part of a churning process's pages."""
        word = f"changed {percent}"
        before = run("podman", "logs", container).count(word)
        run("podman", "kill", "--signal", SIGNALS[percent], container)
        self.wait(container, word, before + 1)

    def progress(self, container):
        """How much a worker has done, and when it said so, in seconds."""
        _, done, at = run("podman", "logs", "--tail", "1", container).split()
        return int(done), float(at)

    def dump(self, container, keep=False):
        """Dumps it into an archive, not compressed, as the kubelet's are; it runs on if it is to be kept."""
        self.dumps += 1
        path = f"{self.work}/{container}-{self.dumps}.tar"
        options = ["--leave-running"] if keep else []
        run("podman", "container", "checkpoint", *options, "--compress", "none", "--export", path, container)
        if not keep:
            run("podman", "rm", "--force", "--time", "0", container)
        return path
