"""Record of each sample's losses, selection and areas, epoch by epoch, as an Arrow file."""

from __future__ import annotations

import base64
import json
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import pyarrow as pa
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from monai.utils import string_list_all_gather
from torch import Tensor

from ..data.slice_store import case_names
from ..runtime.atomic_files import flush, write_whole
from ..runtime.errors import BadInput

log = logging.getLogger(__name__)
FILE = "losses.arrow"
ABOUT = b"cyclic_committee"  # the key of the schema's metadata
COMPRESSED = pa.ipc.IpcWriteOptions(compression="zstd")
END = 8  # bytes that end a stream; ours has no end, since it grows
CHECKSUM = "crc32"  # of what a batch holds, and of the metadata: the stream has none of its own
SINGLE = {
    "epoch": pa.int32(),
    "iteration": pa.int32(),
    "case": pa.dictionary(pa.int32(), pa.string()),
    "slice": pa.int32(),
}
LISTS = {
    **{"losses": pa.float32(), "kept": pa.bool_()},
    **{name: pa.int32() for name in ("labelled", "expected", "agreed")},
}
DAMAGED = (
    pa.ArrowException,
    OSError,
    EOFError,
    ValueError,
    MemoryError,
)  # what pyarrow raises on bytes that are no stream, or only a part


class LossRecord:
    """Write what the members thought of each sample to `losses.arrow`: a handler for the trainer.

    The file is an Arrow IPC stream that grows by one record batch an epoch. A row is a sample:

    - `epoch` and `iteration`, from 1, `case` and `slice`;
    - `losses`: each member's cross entropy before the update, `(members,)` float32;
    - `kept`: whether each member learned from the sample, `(members,)` bool;
    - `labelled`, `expected`, `agreed`: how many pixels of the patch, as augmented, are of each class by the label, by
      the committee (the class of the highest mean probability, before the update), and by both, `(classes,)` int32.

    It stands before SaveTraining, so that the file never lacks an epoch that a checkpoint has. A training that goes on
    drops the epochs that it trains again. Several processes put together what each has seen; the first one writes.

    Args:
        output_dir: where the file goes.
        resume: whether a training goes on; else an earlier file is replaced.
        data: the training cases, `{"image": ..., "label": ...}`: where the audit's pictures come from.
        labels: label id -> name.
        orientation: along whose last axis slices are counted.

    Raises:
        BadInput: a training goes on, and the file is of other members or classes, or no such file at all.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        *,
        resume: bool = False,
        data: Sequence[Mapping[str, Any]] = (),
        labels: Mapping[Any, str] | None = None,
        orientation: str = "RAS",
    ) -> None:
        self.path = Path(output_dir) / FILE
        self.resume = resume
        self.data = data
        self.labels = labels or {}
        self.orientation = orientation
        self.areas = torch.zeros(0)
        self.rows: list[tuple[int, Any, Tensor]] = []  # iteration, selection, areas

    def attach(self, engine: Any) -> None:
        """Look at every iteration, write at every epoch's end."""
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self.rows.clear())
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self.forward_completed)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def started(self, engine: Any) -> None:
        """Keep the epochs of the training that goes on; without one, nothing."""
        if idist.get_rank() != 0 or not self.path.is_file():
            return
        batches = read_batches(self.path) if self.resume else []
        kept = [batch for batch in batches if batch["epoch"][0].as_py() <= engine.state.epoch]
        if kept:
            write_whole(self.path, as_stream(kept, kept[0].schema))
        else:
            self.path.unlink()

    def forward_completed(self, engine: Any) -> None:
        """Sum up the areas now: when the iteration has ended, MONAI has taken its output apart."""
        self.areas = class_areas(engine.state.output["pred"], engine.state.output["label"])

    def iteration_completed(self, engine: Any) -> None:
        """Keep what the iteration has shown."""
        self.rows.append((engine.state.iteration, engine.state.selection, self.areas))

    def epoch_completed(self, engine: Any) -> None:
        """Append the epoch's samples, of all processes."""
        own = as_batch(self.rows, epoch=engine.state.epoch)
        texts = string_list_all_gather([base64.b85encode(as_stream([own], own.schema)).decode()])
        if idist.get_rank() != 0:
            return
        of_ranks = [batch for text in texts for batch in pa.ipc.open_stream(base64.b85decode(text))]
        [rows] = pa.Table.from_batches(of_ranks).unify_dictionaries().combine_chunks().to_batches()
        append(rows, self.path, about=self.about())

    def about(self) -> dict[str, Any]:
        """Return what the audit must know besides: the cases' files, by name, the labels, the orientation."""
        cases = {name: dict(case) for name, case in zip(case_names(self.data), self.data, strict=True)}
        return {"cases": cases, "labels": {str(k): v for k, v in self.labels.items()}, "orientation": self.orientation}


def class_areas(pred: Tensor, label: Tensor) -> Tensor:
    """Return of each class the pixels labelled, expected, and agreed: `(samples, 3, classes)` int64.

    Args:
        pred: the committee's mean probability, `(samples, classes, height, width)`.
        label: class ids, `(samples, 1, height, width)`.
    """
    best = pred.amax(dim=1)  # quicker than argmax, whose classes are far apart in memory; two may share it, rarely
    areas = []
    for k in range(pred.shape[1]):
        labelled, expected = label[:, 0] == k, pred[:, k] == best
        areas.append([of.flatten(1).count_nonzero(dim=1) for of in (labelled, expected, labelled & expected)])
    return torch.stack([torch.stack(of_class, dim=1) for of_class in areas], dim=2)


def as_batch(rows: Sequence[tuple[int, Any, Tensor]], *, epoch: int) -> pa.RecordBatch:
    """Return an epoch's rows of `LossRecord`: an iteration's number, its `trainer.Selection` and its areas each."""
    samples = [sample for _, selection, _ in rows for sample in selection.samples]
    iterations = [iteration for iteration, selection, _ in rows for _ in selection.samples]
    areas = torch.cat([areas for _, _, areas in rows]).to("cpu", torch.int32).numpy()  # (samples, 3, classes)
    columns = {
        "epoch": pa.array(np.full(len(samples), epoch, np.int32)),
        "iteration": pa.array(np.array(iterations, np.int32)),
        "case": pa.array([case for case, _ in samples], pa.string()).dictionary_encode(),
        "slice": pa.array(np.array([index for _, index in samples], np.int32)),
        "losses": lists(torch.cat([selection.losses.float() for _, selection, _ in rows], dim=1).T.numpy()),
        "kept": lists(torch.cat([selection.kept for _, selection, _ in rows], dim=1).T.numpy()),
        **{name: lists(areas[:, k]) for k, name in enumerate(("labelled", "expected", "agreed"))},
    }
    return pa.RecordBatch.from_pydict(columns)


def lists(values: np.ndarray) -> pa.Array:
    """Return `(rows, n)` as lists of n."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def as_stream(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> bytes:
    """Return an Arrow IPC stream without its end."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=COMPRESSED) as writer:
        for batch in batches:
            writer.write_batch(batch, custom_metadata={CHECKSUM: str(checksum(batch))})
    batch_bytes: bytes = sink.getvalue().to_pybytes()[:-END]
    return batch_bytes


def append(batch: pa.RecordBatch, path: Path, *, about: Mapping[str, Any]) -> None:
    """Append a batch to a file, or begin it.

    Raises:
        BadInput: the file has other columns.
    """
    if not path.is_file():
        text = json.dumps(about).encode()
        schema = batch.schema.with_metadata({ABOUT: text, CHECKSUM: str(zlib.crc32(text)).encode()})
        write_whole(path, as_stream([batch.replace_schema_metadata(schema.metadata)], schema))
        return
    with path.open("rb") as file:
        schema = pa.ipc.open_stream(file).schema
    if schema != batch.schema:  # metadata don't count
        raise BadInput(f"{path}: is of another training, with other members or classes. Move it away.")
    head = len(as_stream([], batch.schema))
    with path.open("ab") as file:
        file.write(as_stream([batch], batch.schema)[head:])
    flush(path)  # or a checkpoint of this epoch may outlive it when the power fails


def read_batches(path: Path) -> list[pa.RecordBatch]:
    """Return a file's batches; the last one is left out if the process was killed while it wrote it.

    Raises:
        BadInput: no such file, not one of `LossRecord`, or damaged.
    """
    batches: list[pa.RecordBatch] = []
    try:
        with path.open("rb") as file:
            stream = pa.ipc.open_stream(file)
            require_schema(stream.schema)
            while True:
                began = file.tell()
                try:
                    batch, metadata = stream.read_next_batch_with_custom_metadata()
                except StopIteration:
                    if file.tell() > began:  # our streams have no end: a damaged length looks like one
                        raise EOFError("its parts end before the file does") from None
                    break
                except DAMAGED:
                    if file.read(1) or parts_from(path, began) > 1:  # it isn't the end that was never written
                        raise
                    log.warning(f"{path}: its last epoch isn't whole. The first {len(batches)} are read.")
                    break
                require_whole(batch, metadata or {})
                batches.append(batch)
    except DAMAGED as error:
        raise BadInput(f"{path}: can't be read ({error}). Give the output folder of a training.") from error
    return batches


def parts_from(path: Path, began: int) -> int:
    """Return how many batches begin in the rest of a file, whole or not: each names its checksum once."""
    with path.open("rb") as file:
        file.seek(began)
        return file.read().count(CHECKSUM.encode())


def require_whole(batch: pa.RecordBatch, metadata: Mapping[bytes, bytes]) -> None:
    """Raise one of `DAMAGED` unless a batch is as it was written; pyarrow trusts what it has read, up to a crash."""
    batch.validate(full=True)
    known = metadata.get(CHECKSUM.encode())  # version 0.1 wrote none
    if known is not None and known.decode() != str(checksum(batch)):
        raise EOFError("the checksum of a part is wrong: the file is damaged")
    if batch.num_rows == 0:
        raise EOFError("a part is empty")


def require_schema(schema: pa.Schema) -> None:
    """Raise `EOFError` unless a schema is that of `LossRecord`."""
    about = (schema.metadata or {}).get(ABOUT)
    kinds = {field.name: field.type for field in schema}
    lists_of = {name: kind.value_type for name, kind in kinds.items() if pa.types.is_fixed_size_list(kind)}
    if about is None or lists_of != LISTS or {name: kinds.get(name) for name in SINGLE} != SINGLE:
        raise EOFError("it is no record of losses")
    known = schema.metadata.get(CHECKSUM.encode())
    if known is not None and known != str(zlib.crc32(about)).encode():
        raise EOFError("the checksum of its description is wrong: the file is damaged")


def checksum(batch: pa.RecordBatch) -> int:
    """Return a checksum of what a batch holds, however it is written."""
    crc = 0
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            content = json.dumps(column.to_pylist()).encode()
        else:
            flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
            content = flat.to_numpy(zero_copy_only=False).tobytes()
        crc = zlib.crc32(content, zlib.crc32(name.encode(), crc))
    return crc


def read_losses(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Return what `LossRecord` wrote: its rows, and `cases` (name -> files), `labels` and `orientation`.

    Raises:
        BadInput: see `read_batches`; no epoch has ended yet.
    """
    batches = read_batches(path)
    if not batches:
        raise BadInput(f"{path}: holds no whole epoch. Train on with --resume true.")
    table = pa.Table.from_batches(batches).unify_dictionaries()
    try:
        return table, json.loads(table.schema.metadata[ABOUT])
    except ValueError as error:
        raise BadInput(f"{path}: can't be read ({error}). Give the output folder of a training.") from error
