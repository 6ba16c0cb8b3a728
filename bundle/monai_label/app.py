"""What does the label server offer?"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import requests
import torch
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.utils.async_tasks.utils import processes
from monailabel.utils.others.generic import device_list

from ..scripts.bundles.server_folder import MODEL, served_bundle
from ..scripts.inference.predictor import plain_errors
from ..scripts.runtime.config_files import read_object
from ..scripts.runtime.configuration import open_config
from .disagreement import NAME, DisagreementScoring, MostDisputed
from .guard.parameters import InferenceOptions, parse
from .scores import Scores
from .stores.archive_store import ArchiveStore, archive_client
from .stores.folder_store import FolderStore, plain_tag
from .training import CommitteeTraining

logger = logging.getLogger(__name__)


class CommitteeInference(BundleInferTask):
    """MONAI Label's way of running a bundle: here the members' mean."""

    def __init__(self, bundle: Path, conf: Mapping[str, str], *, labels: Mapping[str, str]) -> None:
        super().__init__(str(bundle), dict(conf), load_strict=True)
        self.labels = {name: int(label) for label, name in labels.items()}  # metadata.json counts channels, not ids

    def config(self) -> dict[str, Any]:
        """Return what a reader may choose."""
        return {"device": device_list()}


class CommitteeApp(MONAILabelApp):
    """One model, its training, and the disagreement of its members as a score and as an order.

    Args:
        app_dir: the work folder, see `server_folder`.
        studies: a folder of NIfTI files, or a DICOMweb url.
        conf: of the server.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.work, self.bundle = Path(app_dir), served_bundle(Path(app_dir))
        metadata = read_object(self.bundle / "configs" / "metadata.json")
        self.metadata = metadata
        self.label_ids = labels_of(self.bundle)
        self.scores = Scores(self.work / "scores.json")
        self.one_at_a_time = Lock()  # MONAI Label imports the bundle's scripts anew for each request
        about = {"description": metadata["description"], "version": metadata["version"]}
        super().__init__(app_dir, studies, conf, name=metadata["name"], **about)

    def init_datastore(self) -> Datastore:
        """Return the store of the studies."""
        if self.studies.startswith(("http://", "https://")):
            client = archive_client(self.studies)
            return ArchiveStore(client, labels=self.label_ids, metadata=self.metadata, cache=self.work / "cache")
        reload = settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD
        return FolderStore(self.studies, labels=self.label_ids, extensions=["*.nii.gz", "*.nii"], auto_reload=reload)

    def init_infers(self) -> dict[str, Any]:
        """Return the one model."""
        return {MODEL: CommitteeInference(self.bundle, self.conf, labels=self.label_ids)}

    def init_trainers(self) -> dict[str, Any]:
        """Return the one training."""
        return {MODEL: CommitteeTraining(self.bundle, self.conf, work=self.work, labels=self.label_ids)}

    def init_strategies(self) -> dict[str, Any]:
        """Return the ways to choose the next image; viewers take the first."""
        return {NAME: MostDisputed(self.scores), "random": Random(), "first": First()}

    def init_scoring_methods(self) -> dict[str, Any]:
        """Return the disagreement."""
        return {NAME: DisagreementScoring(self.bundle, self.scores)}

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Label the image of an id, or an `upload`, the file of an image that isn't among the studies."""
        store = datastore or self.datastore()
        model = str(request.get("model"))
        task = one_of(self._infers, model, "model")
        options = parse(InferenceOptions, request)
        chosen = options.model_dump(exclude_none=True)
        tag = plain_tag(options.label_tag or DefaultLabelTag.ORIGINAL)
        upload = request.get("upload")
        image = upload or store.get_image_uri(str(request.get("image", "")))
        with self.one_at_a_time, plain_errors():
            file, result = task({**chosen, "model": model, "image": image, "description": task.description})
        label = file
        if options.save_label and not upload:
            label = store.save_label(request["image"], file, tag, {"model": model, "params": result})
        return {"label": label, "tag": tag, "file": file, "params": result}

    def batch_infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> Any:
        """Label many images; MONAI Label wants GPUs unless it is told otherwise."""
        many = torch.cuda.device_count() > 1 and request.get("multi_gpu", True)
        return super().batch_infer({**request, "multi_gpu": many}, datastore)

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the image to label next."""
        one_of(self._strategies, str(request.get("strategy")), "strategy")
        found: dict[str, Any] = super().next_sample(copy.deepcopy(dict(request)))
        return found

    def async_scoring(self, method: str | None, params: Any = None) -> Any:
        """Score in the background, if there is anything to score and it isn't being done already."""
        try:
            if processes("scoring") or not self._scoring_methods[NAME].waiting(self.datastore()):
                return {}
            return super().async_scoring(method, params)
        except (requests.RequestException, OSError) as error:  # the archive, or from a training the server, is silent
            logger.warning(f"not scored now: {error}")
            return {}


def one_of(table: Mapping[str, Any], name: str, kind: str) -> Any:
    """Return an entry, or answer 404."""
    if name not in table:
        raise HTTPException(404, f"There is no {kind} {name!r}.")
    return table[name]


def labels_of(bundle: Path) -> dict[str, str]:
    """Return a bundle's labels, id -> name."""
    labels = open_config("inference.yaml", bundle=bundle).get_parsed_content("labels")
    return {str(label): name for label, name in labels.items()}
