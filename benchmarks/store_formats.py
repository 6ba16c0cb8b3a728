"""Which file format should prepared slices be stored in: how large is it, how fast is a random slice read?

    pip install h5py zarr blosc2    # formats whose library isn't there are skipped
    python benchmarks/store_formats.py [--ct FOLDER] [--cases N] [--rounds N] [--noise_hu SD]

FOLDER holds image.nii.gz (HU) and label.nii.gz; without it, phantoms. Volumes are resampled in-plane and stored as
int16 with uint8 labels, in every format, for each way of rounding the image. All formats read the same random slices
in turn, on one thread. A read opens its files and ends in a float32 and a uint8 array (x, y); "kept open" reads from
files that are open already. The page cache is warm, but for "cold", which drops a case's files from it before each
read: what comes off the disk then depends on the system's read-ahead. A CT coarser than the target is smoother than a
real one once resampled, and packs better: --noise_hu adds a scanner's noise. Linux only.
Needs about 0.5 GB a case under $TMPDIR.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from nibabel.arrayproxy import ArrayProxy
from scipy import ndimage

from cyclic_committee.scripts.phantoms.phantom import make_phantom
from cyclic_committee.scripts.transforms.resampling import resample_labels, resample_slices, resampled_size


def optional(name: str) -> Any:
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


h5py, zarr, blosc2 = optional("h5py"), optional("zarr"), optional("blosc2")

HEADER_BYTES = 352  # of a NIfTI file without extensions
SPACING_MM = (0.81640601, 0.81640601)
CLIP_HU, MEAN_HU, SD_HU = (-16, 270), 116.6, 47.9
COLD_READS = 20  # a round
Arrays = tuple[Any, Any]  # image and label of a case, each indexed as [..., slice]
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Stored:
    """A case on disk: what an index of the store would know of it."""

    folder: Path
    shape: tuple[int, int, int]
    scale: float


Write = Callable[[Path, np.ndarray, np.ndarray, float], None]
Open = Callable[[Stored], Arrays]  # files close when the arrays are dropped


@dataclass(frozen=True)
class Format:
    """`files` names what is written; formats with the same files read the same."""

    name: str
    files: str
    write: Write
    open: Open
    package: str = "numpy"


def write_nifti(folder: Path, image: np.ndarray, label: np.ndarray, scale: float) -> None:
    for name, voxels, slope in (("image", image, scale), ("label", label, 1)):
        volume = nib.Nifti1Image(voxels, np.diag([*SPACING_MM, 3, 1]))
        volume.header.set_slope_inter(slope, 0)
        nib.save(volume, folder / f"{name}.nii")


def open_loaded(case: Stored) -> Arrays:
    return nib.load(case.folder / "image.nii").dataobj, nib.load(case.folder / "label.nii").dataobj


def open_proxy(case: Stored) -> Arrays:
    # what the header says is known: its parsing, and scaling in float64, are left out
    image = ArrayProxy(case.folder / "image.nii", (case.shape, np.int16, HEADER_BYTES, 1, 0))
    return image, ArrayProxy(case.folder / "label.nii", (case.shape, np.uint8, HEADER_BYTES, 1, 0))


def open_memmap(case: Stored) -> Arrays:
    image = np.memmap(case.folder / "image.nii", np.int16, "r", HEADER_BYTES, case.shape, "F")
    return image, np.memmap(case.folder / "label.nii", np.uint8, "r", HEADER_BYTES, case.shape, "F")


@dataclass(frozen=True)
class SeekAndRead:
    path: Path
    dtype: type
    shape: tuple[int, int, int]

    def __getitem__(self, key: tuple[Any, int]) -> np.ndarray:
        voxels = np.empty(self.shape[:2], self.dtype, order="F")
        with open(self.path, "rb", buffering=0) as file:
            file.seek(HEADER_BYTES + key[1] * voxels.nbytes)
            file.readinto(voxels.T)
        return voxels


def open_to_seek(case: Stored) -> Arrays:
    image = SeekAndRead(case.folder / "image.nii", np.int16, case.shape)
    return image, SeekAndRead(case.folder / "label.nii", np.uint8, case.shape)


def write_npy(folder: Path, image: np.ndarray, label: np.ndarray, scale: float) -> None:
    np.save(folder / "image.npy", np.ascontiguousarray(image.transpose(2, 0, 1)))
    np.save(folder / "label.npy", np.ascontiguousarray(label.transpose(2, 0, 1)))


def open_npy(case: Stored) -> Arrays:
    image, label = (np.load(case.folder / f"{name}.npy", mmap_mode="r") for name in ("image", "label"))
    return image.transpose(1, 2, 0), label.transpose(1, 2, 0)


def write_hdf5(folder: Path, image: np.ndarray, label: np.ndarray, scale: float, **filters: Any) -> None:
    with h5py.File(folder / "case.h5", "w") as file:
        for name, voxels in (("image", image), ("label", label)):
            file.create_dataset(name, data=voxels, chunks=(*voxels.shape[:2], 1), **filters)


def open_hdf5(case: Stored) -> Arrays:
    file = h5py.File(case.folder / "case.h5", "r")
    return file["image"], file["label"]


def write_zarr(folder: Path, image: np.ndarray, label: np.ndarray, scale: float, *, codec: str, shard: bool) -> None:
    compressors: Any = "auto"  # zarr's default: zstd
    if codec != "auto":
        compressors = zarr.codecs.BloscCodec(cname=codec, clevel=5, shuffle="shuffle")
    for name, voxels in (("image", image), ("label", label)):
        array = zarr.create_array(
            folder / f"{name}.zarr",
            shape=voxels.shape,
            dtype=voxels.dtype,
            chunks=(*voxels.shape[:2], 1),
            shards=voxels.shape if shard else None,
            compressors=compressors,
        )
        array[:] = voxels


def open_zarr(case: Stored) -> Arrays:
    return zarr.open_array(case.folder / "image.zarr", mode="r"), zarr.open_array(case.folder / "label.zarr", mode="r")


def write_b2nd(folder: Path, image: np.ndarray, label: np.ndarray, scale: float, *, codec: str, level: int) -> None:
    packing = {"codec": blosc2.Codec[codec], "clevel": level, "nthreads": 1}
    for name, voxels in (("image", image), ("label", label)):
        chunks, path = (*voxels.shape[:2], 1), str(folder / f"{name}.b2nd")
        blosc2.asarray(np.ascontiguousarray(voxels), urlpath=path, mode="w", chunks=chunks, cparams=packing)


def open_b2nd(case: Stored) -> Arrays:
    reading = {"mode": "r", "mmap_mode": "r", "dparams": {"nthreads": 1}}  # as nnU-Net v2 opens them
    image, label = (blosc2.open(str(case.folder / f"{name}.b2nd"), **reading) for name in ("image", "label"))
    return image, label


def zarr_format(name: str, codec: str, *, shard: bool) -> Format:
    files = f"zarr-{codec}-{shard}"
    return Format(f"zarr {name}", files, partial(write_zarr, codec=codec, shard=shard), open_zarr, "zarr")


def hdf5_format(name: str, **filters: Any) -> Format:
    return Format(f"hdf5 {name}", f"hdf5-{name}", partial(write_hdf5, **filters), open_hdf5, "h5py")


FORMATS = (
    Format("nifti, nib.load", "nifti", write_nifti, open_loaded),
    Format("nifti, ArrayProxy", "nifti", write_nifti, open_proxy),
    Format("nifti, np.memmap", "nifti", write_nifti, open_memmap),
    Format("nifti, seek and read", "nifti", write_nifti, open_to_seek),
    Format("npy, memmap", "npy", write_npy, open_npy),
    hdf5_format("gzip-1 shuffle", compression="gzip", compression_opts=1, shuffle=True),
    hdf5_format("lzf shuffle", compression="lzf", shuffle=True),
    zarr_format("zstd", "auto", shard=False),
    zarr_format("blosc zstd", "zstd", shard=False),
    zarr_format("blosc lz4", "lz4", shard=False),
    zarr_format("blosc zstd, 1 shard", "zstd", shard=True),
    Format("b2nd zstd-8", "b2-zstd", partial(write_b2nd, codec="ZSTD", level=8), open_b2nd, "blosc2"),
    Format("b2nd lz4-5", "b2-lz4", partial(write_b2nd, codec="LZ4", level=5), open_b2nd, "blosc2"),
)


def read(arrays: Arrays, index: int, scale: float) -> Pair:
    image, label = arrays[0][..., index], arrays[1][..., index]
    scaled = np.array(image, np.float32, order="C")
    if image.dtype == np.int16:  # else nibabel has scaled it
        scaled *= np.float32(scale)
    return scaled, np.array(label, np.uint8, order="C")


def read_opening(form: Format, case: Stored, index: int) -> Pair:
    return read(form.open(case), index, case.scale)


def scaled_finely(hu: np.ndarray) -> tuple[np.ndarray, float]:
    values = (np.clip(hu, *CLIP_HU) - MEAN_HU) / SD_HU
    scale = float(np.float32(np.abs(values).max() / 32767))  # as a NIfTI header holds it
    return np.rint(values / scale).astype(np.int16), scale


def scaled_coarsely(hu: np.ndarray) -> tuple[np.ndarray, float]:
    scale = float(np.float32(0.001))
    return np.rint((np.clip(hu, *CLIP_HU) - MEAN_HU) / SD_HU / scale).astype(np.int16), scale


def clipped_hu(hu: np.ndarray) -> tuple[np.ndarray, float]:
    return np.rint(np.clip(hu, *CLIP_HU)).astype(np.int16), 1.0


def whole_hu(hu: np.ndarray) -> tuple[np.ndarray, float]:
    return np.rint(hu).astype(np.int16), 1.0


ROUNDINGS: tuple[tuple[str, Callable[[np.ndarray], tuple[np.ndarray, float]]], ...] = (
    ("normalised, int16 used in full (step 0.0001 sd)", scaled_finely),
    ("normalised, step 0.001 sd", scaled_coarsely),
    ("clipped, whole HU (step 0.021 sd)", clipped_hu),
    ("not clipped, whole HU", whole_hu),
)


def resampled(hu: np.ndarray, label: np.ndarray, spacing_mm: Sequence[float]) -> Pair:
    size = resampled_size(hu.shape[:2], spacing_mm, SPACING_MM)
    slices = torch.from_numpy(hu.astype(np.float32)).permute(2, 0, 1)
    ids = torch.from_numpy(label.astype(np.uint8)).permute(2, 0, 1)
    return (
        resample_slices(slices, size, order=3).permute(1, 2, 0).numpy(),
        resample_labels(ids, size).permute(1, 2, 0).numpy(),
    )


def volumes(ct: str | None, cases: int, noise_hu: float) -> Iterator[Pair]:
    """Yield HU float32 and label uint8, (x, y, slices); no two are the same."""
    if ct:
        image, ids = (nib.load(Path(ct) / f"{name}.nii.gz") for name in ("image", "label"))
        original = resampled(image.get_fdata(dtype=np.float32), np.asarray(ids.dataobj), image.header.get_zooms()[:2])
    for case in range(cases):
        if ct:
            flip = tuple(slice(None, None, -1 if case >> axis & 1 else 1) for axis in range(3))
            hu, label = original[0][flip] + np.float32(case / 10), original[1][flip]
        else:
            phantom = make_phantom(case)
            hu, label = resampled(phantom.image_hu, phantom.label, np.diag(phantom.affine)[:2])
        if noise_hu:
            noise = np.random.default_rng(case).standard_normal(hu.shape, np.float32)
            noise = ndimage.gaussian_filter(noise, (0.5, 0.5, 0))  # a soft kernel: neighbours resemble each other
            hu = hu + noise * np.float32(noise_hu / noise.std())
        yield hu, label


@dataclass
class Result:
    write_s: list[float] = field(default_factory=list)
    bytes: int = 0
    files: int = 0
    warm: list[float] = field(default_factory=list)  # reads per second, one a round
    kept: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    cold_disk_bytes: int = 0
    private_mb: tuple[float, float] = (0, 0)


def store(form: Format, folder: Path, raw: Pair, scale: float, result: Result) -> Stored:
    if not folder.exists():
        folder.mkdir(parents=True)
        began_s = time.perf_counter()
        form.write(folder, *raw, scale)
        result.write_s.append(time.perf_counter() - began_s)
    files = [file for file in folder.rglob("*") if file.is_file()]
    result.bytes += sum(file.stat().st_size for file in files)
    result.files += len(files)
    case = Stored(folder, raw[0].shape, scale)
    index = raw[0].shape[2] // 3
    image, label = read_opening(form, case, index)
    expected = raw[0][..., index].astype(np.float32) * np.float32(scale)
    same = np.allclose(image, expected, rtol=1e-6, atol=0) and np.array_equal(label, raw[1][..., index])
    if not (same and image.flags.c_contiguous and label.flags.c_contiguous):
        raise SystemExit(f"{form.name}: a slice that was read isn't the one that was written.")
    return case


def drop_from_page_cache(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_bytes_read() -> int:
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def measure_warm(form: Format, cases: Sequence[Stored], draws: Sequence[tuple[int, int]], result: Result) -> None:
    began_s = time.perf_counter()
    for case, index in draws:
        read_opening(form, cases[case], index)
    result.warm.append(len(draws) / (time.perf_counter() - began_s))

    opened = [form.open(case) for case in cases]
    began_s = time.perf_counter()
    for case, index in draws:
        read(opened[case], index, cases[case].scale)
    result.kept.append(len(draws) / (time.perf_counter() - began_s))


def measure_cold(form: Format, cases: Sequence[Stored], draws: Sequence[tuple[int, int]], result: Result) -> None:
    spent_s = 0.0
    for case, index in draws[:COLD_READS]:
        drop_from_page_cache(cases[case].folder)
        before, began_s = disk_bytes_read(), time.perf_counter()
        read_opening(form, cases[case], index)
        spent_s += time.perf_counter() - began_s
        result.cold_disk_bytes += disk_bytes_read() - before
    result.cold.append(COLD_READS / spent_s)


def private_mb() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean"))) / 1024


def growth_mb(form: Format, cases: Sequence[Stored]) -> tuple[float, float]:
    """Read all slices of all cases in a process of its own: growth without and with files kept open."""
    read_opening(form, cases[0], 0)  # what the libraries need once isn't growth
    before_mb = private_mb()
    for case in cases:
        for index in range(case.shape[2]):
            read_opening(form, case, index)
    opening_mb = private_mb()
    opened = [form.open(case) for case in cases]
    for case, arrays in zip(cases, opened, strict=True):
        for index in range(case.shape[2]):
            read(arrays, index, case.scale)
    return opening_mb - before_mb, private_mb() - before_mb


def measure(
    formats: Sequence[Format], folder: Path, raws: Iterator[tuple[Pair, float]], rounds: int, reads: int
) -> tuple[dict[str, Result], int]:
    results, voxels = {form.name: Result() for form in formats}, 0
    stores: dict[str, list[Stored]] = {form.name: [] for form in formats}
    for number, (raw, scale) in enumerate(raws):
        voxels += raw[0].size
        for form in formats:
            place = folder / form.files / f"case{number}"
            stores[form.name].append(store(form, place, raw, scale, results[form.name]))
    os.sync()  # pages that aren't written yet can't be dropped
    rng = np.random.default_rng(0)
    for measure_round in (measure_warm, measure_cold):  # cold last: it leaves the page cache with gaps
        for turn in range(rounds):
            chosen = rng.integers(len(stores[formats[0].name]), size=reads)
            draws = [(int(case), int(rng.integers(stores[formats[0].name][case].shape[2]))) for case in chosen]
            for place in range(len(formats)):
                form = formats[(place + turn) % len(formats)]
                measure_round(form, stores[form.name], draws, results[form.name])
    for form in formats:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            results[form.name].private_mb = fresh.submit(growth_mb, form, stores[form.name]).result()
    return results, voxels


def print_table(results: dict[str, Result], voxels: int, cases: int) -> None:
    first = next(iter(results.values()))
    print(
        f"{'':22} {'bytes a':>7} {'files':>6} {'reads per second, warm':>23} {'ratio':>6} {'kept':>6} {'cold':>6} "
        f"{'KB off':>7} {'write':>7} {'private MB +':>13}\n"
        f"{'format':22} {'voxel':>7} {'a case':>6} {'median (min-max)':>23} {'to 1st':>6} {'open':>6} {'':>6} "
        f"{'disk':>7} {'s/case':>7} {'(kept open)':>13}"
    )
    for name, got in results.items():
        speed = f"{np.median(got.warm):.0f} ({min(got.warm):.0f}-{max(got.warm):.0f})"
        ratio = np.median(np.divide(got.warm, first.warm))
        disk_kb = got.cold_disk_bytes / 1024 / len(got.cold) / COLD_READS
        write = f"{np.median(got.write_s):.2f}" if got.write_s else "same"
        memory = f"{got.private_mb[0]:.1f} ({got.private_mb[1]:.0f})"
        print(
            f"{name:22} {got.bytes / voxels:7.3f} {got.files / cases:6.0f} {speed:>23} {ratio:6.2f} "
            f"{np.median(got.kept):6.0f} {np.median(got.cold):6.0f} {disk_kb:7.0f} {write:>7} {memory:>13}"
        )


def main(*, ct: str | None = None, cases: int = 12, rounds: int = 7, reads: int = 100, noise_hu: float = 0) -> None:
    torch.set_num_threads(1)
    if blosc2:
        blosc2.set_nthreads(1)
    if zarr:
        zarr.config.set({"threading.max_workers": 1})
    formats = []
    for form in FORMATS:
        if optional(form.package):
            formats.append(form)
        else:
            print(f"{form.name}: skipped, {form.package} isn't installed.")
    libraries = [library for library in (np, nib, h5py, zarr, blosc2) if library]
    print(", ".join(f"{library.__name__} {library.__version__}" for library in libraries))
    for number, (title, rounding) in enumerate(ROUNDINGS):
        # uncompressed files don't care what is in them: one of them stays, as the reference
        chosen = (
            formats
            if number == 0
            else [form for form in formats if form.name == FORMATS[0].name or form.package != "numpy"]
        )
        raws = (((raw, label), scale) for hu, label in volumes(ct, cases, noise_hu) for raw, scale in [rounding(hu)])
        with tempfile.TemporaryDirectory() as folder:
            results, voxels = measure(chosen, Path(folder), raws, rounds, reads)
        print(f"\n{title}; {cases} cases of {voxels / cases / 1e6:.1f} million voxels")
        print_table(results, voxels, cases)


if __name__ == "__main__":
    fire.Fire(main)
