"""One task of the sweep: its place in the array picks the learning rate."""

from __future__ import annotations

import json
import os
from pathlib import Path

from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)

index = int(os.environ.get("PENSTOCK_ARRAY_INDEX", "0"))
rate = RATES[index]
images, labels = load_digits(return_X_y=True)
model = make_pipeline(StandardScaler(), SGDClassifier(learning_rate="constant", eta0=rate, random_state=0))
score = cross_val_score(model, images, labels, cv=5).mean()
folder = Path(os.environ.get("RESULTS", "results"))
folder.mkdir(parents=True, exist_ok=True)
(folder / f"{index}.json").write_text(json.dumps({"rate": rate, "accuracy": round(float(score), 4)}))
print(f"task {index}: learning rate {rate:g} -> accuracy {score:.4f}")
