"""How sure the model is of its answers, as the metric that site agents read: a histogram in ten bins for each served model.

A module of its own: MLServer loads the one that `implementation` names anew for each model, and a metric can be made only once.
"""

from prometheus_client import Histogram

CONFIDENCE = Histogram(
    "edgefleet_confidence",
    "Probability of the digit that was answered",
    ["model_name"],
    buckets=[tenth / 10 for tenth in range(1, 11)],
)
