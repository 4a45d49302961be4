"""Names in the store: where a run's data, checkpoints and result lie. The operator and the trainer both derive them.

<cache>/models/<org>--<name>/<commit>/            a model fetched from the Hub, shared by all jobs of the storage
<cache>/data/<data digest>/{train,eval}.jsonl     a dataset after checking and splitting
<cache>/data/<data digest>/packs-<its own sha256[:12]>.json
                                                  which training rows share a sequence
<checkpoint>/<ns>/<name>/<run>/<data>/fence-<k>/step-<n>/
<output>/<ns>/<name>/<run[:12]>-<data[:12]>-<model[:12]>/
                                                  the published adapter; manifest.json is written last
"""

from __future__ import annotations

MANIFEST = "manifest.json"


def join(uri: str, *parts: str) -> str:
    """Append path segments to a URI."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def data_uri(cache_uri: str, data_digest: str) -> str:
    """Folder of a staged dataset."""
    return join(cache_uri, "data", data_digest)


def packs_name(digest: str) -> str:
    """Name of the file that says which rows of a staged dataset share a sequence, by its sha256."""
    return f"packs-{digest[:12]}.json"


def checkpoint_uri(location: str, namespace: str, name: str, run_digest: str, data_digest: str) -> str:
    """Folder of all fences of one run on one dataset."""
    return join(location, namespace, name, run_digest, data_digest)


def output_uri(location: str, namespace: str, name: str) -> str:
    """Folder of all results of one job."""
    return join(location, namespace, name)


def result_uri(job_output_uri: str, run_digest: str, data_digest: str, model_digest: str) -> str:
    """Folder of one published adapter."""
    return join(job_output_uri, f"{run_digest[:12]}-{data_digest[:12]}-{model_digest[:12]}")
