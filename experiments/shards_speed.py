"""How fast are shards read, beside files and beside the bare network, and how much memory do they need?

    python experiments/shards_speed.py          (uses about 2 GB in a temporary folder, deleted afterwards)

The script makes JPEG pictures of 256 px, as files and as shards, and serves the shards over HTTP and, if moto is
installed, with the interface of S3, from processes of their own. It measures, each in a separate process:

* images per second of a loader with one worker, in the order of training, with a plain view of 96 px;
* how fast the bytes of the same shards can be fetched and stored, without a loader;
* the memory of the loader and its worker after each of five epochs, for 4 000 and 40 000 pictures;
* the time and the memory (RSS) to open 1 000 000 samples, for the first time and again.

Expected on two cores: 1 800 to 2 000 pictures per second from files, from shards, and from copies of remote shards, and
1 600 to 1 900 while the shards are fetched; they are fetched ten times as fast as they are read (230 MB/s over HTTP,
250 to 600 MB/s from moto). The memory stays at 804 MiB for 4 000 pictures, and at 813 to 826 MiB for 40 000. Opening
1 000 000 samples takes 0.7 to 1.4 s and at most 220 MiB more, and later 0.1 s and 72 MiB.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from cvexp import compose, data
from cvexp.config import DatasetConfig, LoaderConfig
from cvexp.data.augment.views import CenterView
from cvexp.data.crops import CropBatches, Crops
from cvexp.data.index import Splits
from cvexp.data.kept import Images
from cvexp.data.loaders import ShuffledBatches, make_loader
from cvexp.data.members import File
from cvexp.data.order import group_by_shard
from cvexp.data.packing import Sample, ShardWriter
from cvexp.data.shards.copies import fetch_file
from cvexp.data.shards.format import ARRAYS, LISTING, Listing, Part, write_listing

NUM_PICTURES, SIDE, BATCH_SIZE = 4000, 256, 64
SHARD_BYTES = 8e6
PORTS = {"http": 8765, "s3": 8766}
CREDENTIALS = {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORTS['s3']}",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def pictures(count: int) -> list[bytes]:
    """Return JPEG files that are as large and as slow to decode as photographs."""
    random = np.random.RandomState(0)
    encoded = []
    for _ in range(count):
        coarse = Image.fromarray(random.randint(0, 256, (SIDE // 4, SIDE // 4, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        encoded.append(buffer.getvalue())
    return encoded


def write_files(folder: Path, encoded: list[bytes], count: int) -> None:
    for split, of_split in (("train", count), ("val", 8)):
        (folder / split).mkdir(parents=True)
        for i in range(of_split):
            (folder / split / f"{i:06}.jpg").write_bytes(encoded[i % len(encoded)])


def write_shards(folder: Path, encoded: list[bytes], count: int) -> None:
    """Write shards of pictures that repeat, which is quicker than `task=prepare`."""
    folder.mkdir(parents=True)
    parts = {}
    for split, of_split in (("train", count), ("val", 8)):
        arrays = {name: np.zeros(of_split, dtype=kind) for name, kind in ARRAYS.items()}
        arrays["label"][:] = -1
        shards: list[File] = []
        writer = None
        for i in range(of_split):
            content = encoded[i % len(encoded)]
            if writer is not None and writer.num_bytes + len(content) > SHARD_BYTES:
                shards.append(writer.close())
                writer = None
            writer = writer or ShardWriter(folder / f"{split}-{len(shards):05}.tar")
            row = (len(shards), writer.add(i, Sample(content, "jpg", (SIDE, SIDE)), -1), len(content), SIDE, SIDE)
            for name, value in zip(ARRAYS, row, strict=False):
                arrays[name][i] = value
            arrays["crc32"][i] = zlib.crc32(content)
        if writer is not None:
            shards.append(writer.close())
        parts[split] = Part(_save(arrays, folder / f"{split}.npz", of_split), tuple(shards))
    write_listing(Listing("synthetic", (), parts), folder / LISTING)


def _save(arrays: dict[str, Any], path: Path, count: int) -> File:
    np.savez(path, **arrays)
    content = path.read_bytes()
    return File(path.name, len(content), hashlib.sha256(content).hexdigest(), count)


def write_index(folder: Path, count: int) -> None:
    """Write an index of samples of 12 KB, with empty shards of the right sizes, which take no space."""
    folder.mkdir(parents=True)
    parts = {}
    for split, of_split in (("train", count), ("val", 1000)):
        per_shard, place = 5000, np.arange(of_split)
        values = (place // per_shard, place % per_shard * 12800 + 512, 12000, SIDE, SIDE, -1, 0)
        arrays = {name: np.zeros(of_split, kind) for name, kind in ARRAYS.items()}
        for name, value in zip(ARRAYS, values, strict=True):
            arrays[name][:] = value
        shards = []
        for number in range(-(-of_split // per_shard)):
            path = folder / f"{split}-{number:05}.tar"
            path.touch()
            os.truncate(path, per_shard * 12800)
            digest = hashlib.sha256(path.name.encode()).hexdigest()
            shards.append(File(path.name, per_shard * 12800, digest, min(per_shard, of_split - number * per_shard)))
        parts[split] = Part(_save(arrays, folder / f"{split}.npz", of_split), tuple(shards))
    write_listing(Listing("synthetic", (), parts), folder / LISTING)


def configure(root: str) -> DatasetConfig:
    source = "folder" if root.endswith("files") else "shards"
    return compose(f"dataset={source}", f"dataset.root={root}").dataset


def open_data(root: str) -> Splits:
    return data.load(configure(root), "pretraining")


def loader_of(splits: Splits, epochs: list[int], num_workers: int = 1) -> Any:
    """Return a loader of the training crops whose epochs are those in `epochs`, one after the other."""
    train = splits.train
    members = train.catalog.members
    groups = None if members is None else group_by_shard(members.shard[train.image], len(members.shards), 16)
    crops = CropBatches(train, Images(Crops(train, 96)), [CenterView(96)], seed=0)
    num_batches = len(train) // BATCH_SIZE
    batches = ShuffledBatches(len(train), BATCH_SIZE, 0, lambda: epochs[0] * num_batches, groups=groups)
    return make_loader(crops, batches, LoaderConfig(batch_size=BATCH_SIZE, num_workers=num_workers))


def measure_speed(root: str) -> dict[str, float]:
    """Measure images per second of the first epoch, in which shards are fetched, and the median of five more."""
    splits = open_data(root)
    epochs = [0]
    loader = loader_of(splits, epochs)
    speeds = []
    for epochs[0] in range(6):
        started = time.perf_counter()
        count = sum(BATCH_SIZE for _ in loader)
        speeds.append(count / (time.perf_counter() - started))
    processes = [psutil.Process(), *psutil.Process().children()]
    seconds = sum(sum(process.cpu_times()[:2]) for process in processes)
    return {"first epoch": speeds[0], "later": statistics.median(speeds[1:]), "CPU seconds of processes": seconds}


def measure_fetching(root: str) -> dict[str, float]:
    """Measure how fast the shards are fetched, checked and stored by one thread."""
    members = open_data(root).train.catalog.members
    assert members is not None
    started = time.perf_counter()
    for number, shard in enumerate(members.shards):
        fetch_file(shard, members.place, Path(f"fetched-{number}"))
    seconds = time.perf_counter() - started
    num_bytes = sum(shard.num_bytes for shard in members.shards)
    return {"MB/s": num_bytes / 1e6 / seconds, "images/s": len(members.shard) / seconds}


def measure_memory(root: str) -> dict[str, float]:
    """Measure the memory of a loader and its worker after each epoch, in MiB."""
    epochs = [0]
    loader = loader_of(open_data(root), epochs)
    memory = {}
    for epochs[0] in range(5):
        for _ in loader:
            pass
        gc.collect()
        own = psutil.Process()
        memory[f"epoch {epochs[0] + 1}"] = sum(own_memory(process.pid) for process in (own, *own.children()))
    return memory


def own_memory(pid: int) -> float:
    """Return the memory of a process in MiB, without the pages of files. Pages of several processes count in parts."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
    return sum(kibibytes) / 2**10


def measure_opening(root: str) -> dict[str, float]:
    """Measure the time and the memory to open a data set, and to make its crops and order."""
    config = configure(root)
    rss, peak = psutil.Process().memory_info().rss, peak_memory()
    started = time.perf_counter()
    splits = data.load(config, "pretraining")
    opened = time.perf_counter()
    after = psutil.Process().memory_info().rss
    peak_of_opening = peak_memory() - peak
    loader = loader_of(splits, [0], num_workers=0)
    next(iter(loader.sampler))
    return {
        "seconds": opened - started,
        "MiB": (after - rss) / 2**20,
        "seconds for crops and order": time.perf_counter() - opened,
        "MiB with crops and order": (psutil.Process().memory_info().rss - rss) / 2**20,
        "peak MiB of opening": peak_of_opening,
    }


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def serve(folder: Path) -> list[subprocess.Popen[bytes]]:
    """Serve a folder over HTTP, and its shards with the interface of S3."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    http = [sys.executable, "-m", "http.server", str(PORTS["http"]), "--directory", str(folder), "--bind", "127.0.0.1"]
    servers = [subprocess.Popen(http, **quiet)]  # type: ignore[call-overload]
    try:
        import boto3
        import moto.server  # noqa: F401
    except ImportError:
        return servers
    servers.append(subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(PORTS["s3"])], **quiet))  # type: ignore[call-overload]
    for _ in range(300):
        try:
            urllib.request.urlopen(CREDENTIALS["AWS_ENDPOINT_URL"]).close()
            break
        except OSError:
            time.sleep(0.1)
    os.environ.update(CREDENTIALS)
    client = boto3.client("s3")
    client.create_bucket(Bucket="shards")
    for path in (folder / "shards").iterdir():
        client.upload_file(str(path), "shards", f"small/{path.name}")
    return servers


def run(measure: str, root: str, folder: Path) -> None:
    """Run a measurement in a process of its own, and print what it returns."""
    command = [sys.executable, __file__, measure, root]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(finished.stderr)
    values = json.loads(finished.stdout.splitlines()[-1])
    where = root.replace(str(folder), "").strip("/")
    print(f"{measure:9} {where:32}", ", ".join(f"{name} {value:,.2f}" for name, value in values.items()), flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        encoded = pictures(500)
        write_files(folder / "files", encoded, NUM_PICTURES)
        write_shards(folder / "shards", encoded, NUM_PICTURES)
        write_shards(folder / "large", encoded, 10 * NUM_PICTURES)
        write_index(folder / "million", 1_000_000)
        servers = serve(folder)
        try:
            remote = [f"http://127.0.0.1:{PORTS['http']}/shards", *["s3://shards/small"] * (len(servers) > 1)]
            for root in (str(folder / "files"), str(folder / "shards"), *remote):
                run("speed", root, folder)
            for root in remote:
                run("fetching", root, folder)
            for name in ("shards", "large"):
                run("memory", str(folder / name), folder)
            for _ in range(2):
                run("opening", str(folder / "million"), folder)
        finally:
            for server in servers:
                server.terminate()


MEASUREMENTS = {
    "speed": measure_speed,
    "fetching": measure_fetching,
    "memory": measure_memory,
    "opening": measure_opening,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if len(sys.argv) > 1:
        print(json.dumps(MEASUREMENTS[sys.argv[1]](sys.argv[2])))
    else:
        main()
