"""Every name the operator writes into the cluster: one documented constant each."""

GROUP = "finetune-operator.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
JOB_KIND = "FineTuneJob"
JOB_PLURAL = "finetunejobs"
RUNTIME_KIND = "FineTuneRuntime"
RUNTIME_PLURAL = "finetuneruntimes"

# Labels on every child. The operator lists and watches children by JOB_LABEL alone.
JOB_LABEL = f"{GROUP}/job"
"""Name of the FineTuneJob."""
JOB_UID_LABEL = f"{GROUP}/job-uid"
"""Its uid: children of a namesake that was deleted a moment ago are told apart by it."""
STAGE_LABEL = f"{GROUP}/stage"
"""``prepare`` or ``train``."""
ATTEMPT_LABEL = f"{GROUP}/attempt"
"""Number of the attempt, from 1 on, never used twice within a FineTuneJob."""
RUN_LABEL = f"{GROUP}/run"
"""First twelve characters of the run digest: children of an older run are recognised by it."""

STAGE_PREPARE = "prepare"
STAGE_TRAIN = "train"

# Labels and annotations that belong to Kubernetes.
JOB_CONTROLLER_LABEL = "batch.kubernetes.io/controller-uid"
"""On every pod of a Job, with the Job's uid; the Job controller finds its pods by it."""
COMPLETION_INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "finetune-operator"
QUEUE_LABEL_PREFIX = "kueue.x-k8s.io/"
"""Kueue's labels on a FineTuneJob are copied to the attempt's Job."""

TRAINER_CONTAINER = "trainer"
TRAINER_UID = 65532
"""User and group of every pod we render: the volumes must be writable for it."""

MAX_ATTEMPTS_LISTED = 10
"""``status.attempts`` keeps the newest ones; totals are fields of their own."""
MAX_MESSAGE = 1024
"""Bytes of a message that come from a pod and are copied into a status."""


class ConditionType:
    """Types of the conditions of a FineTuneJob. There is no ``Ready`` (see docs/conditions.md)."""

    ACCEPTED = "Accepted"
    """The spec passed all checks and its snapshot is taken."""
    RECONCILING = "Reconciling"
    """True only while something has to be created first (kstatus: in progress)."""
    STALLED = "Stalled"
    """True on a spec error or a final failure (kstatus: failed)."""
    SPEC_DRIFTED = "SpecDrifted"
    """The spec was edited after the run was accepted; the run goes on as accepted. The message says what differs."""
    RUNNING = "Running"
    """All pods of the current stage run."""
    COMPLETE = "Complete"
    """The adapter is published."""
    FAILED = "Failed"
    """The run ended without a result; the reason says why."""


class Reason:
    """Reasons of conditions and events."""

    # Accepted
    ACCEPTED = "Accepted"
    RUNTIME_NOT_FOUND = "RuntimeNotFound"
    """The named FineTuneRuntime does not exist (yet); looked for again on its event and every 30 s."""
    CLAIM_NOT_FOUND = "PersistentVolumeClaimNotFound"
    """A named claim does not exist (yet) in the job's namespace; looked for again every 30 s."""
    STORAGE_NOT_SET = "StorageNotSet"
    """Neither the job nor its runtime names a claim; a bucket for checkpoints does not hold the cache."""
    NAMESPACE_NOT_ALLOWED = "NamespaceNotAllowed"
    """The runtime's ``allowedNamespaces`` does not select the job's namespace."""
    URI_NOT_ALLOWED = "UriNotAllowed"
    """A URI of the job begins with none of the runtime's ``allowedUriPrefixes``, or could be read in two ways."""
    PRIORITY_CLASS_NOT_ALLOWED = "PriorityClassNotAllowed"
    """``spec.priorityClassName`` is not in the runtime's ``allowedPriorityClassNames``."""
    POD_METADATA_NOT_ALLOWED = "PodMetadataNotAllowed"
    """A key of ``spec.podMetadata`` has a prefix that is not in the runtime's ``allowedPodMetadataPrefixes``."""
    POOL_NOT_FOUND = "PoolNotFound"
    """``spec.placement[].pool`` names no pool of the runtime."""
    PLACEMENT_TOO_LARGE = "PlacementTooLarge"
    """More nodes or GPUs per node than any pool has."""
    SETTINGS_CONFLICT = "SettingsConflict"
    """Two settings exclude each other, e.g. a strategy and an optimizer; the message names both and the way out."""
    INVALID_SPEC = "InvalidSpec"
    """A field is out of bounds in a way that only the operator can see."""

    # SpecDrifted
    AS_ACCEPTED = "AsAccepted"
    """The spec is the one that the run was accepted with."""
    EDITED = "Edited"
    """The spec differs from the one that the run was accepted with."""

    # Stalled
    SNAPSHOT_UNREADABLE = "SnapshotUnreadable"
    """The ConfigMap ``<job>-run`` does not parse: it was edited, or written by another version. Nothing is touched."""

    # Reconciling
    CHILD_REFUSED = "ChildRefused"
    """A child cannot be created; the message holds the API server's words. Tried again, at most a minute later."""

    # Running
    PREPARING = "Preparing"
    """The CPU stage checks the model and the dataset."""
    DATASET_WARNING = "DatasetWarning"
    """Only an event: what the CPU stage found odd in the dataset and let pass, e.g. rows that are cut."""
    QUEUED = "Queued"
    """The attempt's Job waits for admission by a queue."""
    POOL_BUSY = "PoolBusy"
    """Another job's pods wait for nodes of the same pool; two half-placed gangs could wait for each other for ever."""
    UNSCHEDULABLE = "Unschedulable"
    """The scheduler finds no node for a pod; its words are in the message."""
    STARTING = "Starting"
    """The first attempt was created; its pods find their nodes, and images and volumes are being made ready."""
    TRAINING = "Training"
    """All pods of the attempt run."""
    RESUMING = "Resuming"
    """A further attempt was created and continues from the newest checkpoint."""
    INTERRUPTED = "Interrupted"
    """The attempt ended, or its cause is being found; the next one follows when its pods are gone."""
    BACKING_OFF = "BackingOff"
    """The next attempt waits: after a failure of the job itself, a disruption without progress, or a round of
    placements without nodes."""
    SUSPENDED = "Suspended"
    """``spec.suspend`` is true."""
    RESTARTING = "Restarting"
    """``spec.runId`` changed, or the spec with ``onChange: Restart``: the old run's children are being removed."""
    FINISHED = "Finished"
    """Nothing runs any more."""
    CHILDREN_REMOVED = "ChildrenRemoved"
    """``ttlSecondsAfterFinished`` is over: pods, Jobs and their configuration are gone; the result stays."""

    # Complete
    TRAINED = "Trained"
    RESULT_FOUND = "ResultFound"
    """The same run on the same data was published before: nothing had to be trained."""

    # Failed, Stalled
    PREPARE_FAILED = "PrepareFailed"
    """The CPU stage failed for a reason that is not the user's, more often than it may."""
    USER_ERROR = "UserError"
    """The model or the dataset or the configuration cannot work; the message names field and remedy."""
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    """The job's own failures exceeded ``spec.backoffLimit``."""
    REPEATED_FAILURE = "RepeatedFailure"
    """The same exception at the same step, twice: the next attempt would meet it again."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """The attempts together took longer than ``spec.activeDeadlineSeconds``."""


class Cause:
    """Why an attempt ended (``status.attempts[].cause``)."""

    NODE_LOST = "NodeLost"
    PREEMPTED = "Preempted"
    NO_DEVICE = "NoDevice"
    """The pool promises CUDA and the pod saw none: the infrastructure's fault."""
    OUT_OF_MEMORY = "OutOfMemory"
    HANG = "Hang"
    APPLICATION = "Application"
    USER_ERROR = "UserError"
    CONTRACT_SKEW = "ContractSkew"
    """The trainer refuses a configuration that it trained with before: operator and image do not fit together, or what
    the pods may use was taken away. Not the user's fault; tried again."""
    NOT_SCHEDULED = "NotScheduled"
    """Not all pods found nodes in time: the next placement is tried."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """``spec.activeDeadlineSeconds`` is used up."""
    SUSPENDED = "Suspended"
    SUPERSEDED = "Superseded"
    """The run was given up for a new ``runId``, or for an edit with ``onChange: Restart``."""
    UNKNOWN = "Unknown"
