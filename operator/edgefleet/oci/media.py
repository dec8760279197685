"""Media types and annotations that we write and read. Sources: OCI image spec 1.1, CNCF model-spec 0.0.7, Sigstore bundle 0.3."""

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
EMPTY_BYTES = b"{}"

MODEL = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
MODEL_LAYER_KINDS = ("weight", "weight.config", "doc", "code", "dataset")
WEIGHT_LAYER = "application/vnd.cncf.model.weight.v1.raw"
RAW_LAYERS = frozenset(f"application/vnd.cncf.model.{kind}.v1.raw" for kind in MODEL_LAYER_KINDS)
TAR_LAYERS = frozenset(
    f"application/vnd.cncf.model.{kind}.v1.{form}" for kind in MODEL_LAYER_KINDS for form in ("tar", "tar+gzip", "tar+zstd")
)
FILEPATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"

VARIANT_PREFIX = "io.edgefleet.variant."
"""Prefix of the annotations of an index entry that say what hardware a variant needs."""

GOLDEN = "application/vnd.edgefleet.golden.v1"
GOLDEN_LINES = "application/vnd.edgefleet.golden.v1+jsonl"

SIGSTORE_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE_TYPE = "dev.sigstore.bundle.predicateType"
"""Annotation that tells a person what a bundle says; nobody verifies by it."""

LAYOUT_MODEL = "io.edgefleet.model"
"""Annotation of the release's entry in a layout's index.json: the model's name, a hint that the signatures must bear out."""
