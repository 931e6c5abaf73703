"""Prediction files and labels that the tests of the ensemble share."""

import numpy as np
import pandas as pd


def make_project(folder):
    """Three members of different quality over 300 clips, each in an order of its own, and labels for 290 of them.

    Returns their paths (good, fair, poor) and that of the labels.
    """
    rng = np.random.default_rng(0)
    ids = [rng.bytes(8).hex() for _ in range(300)]
    truth = rng.random(300)
    paths = []
    for seed, (name, noise) in enumerate({"good": 0.12, "fair": 0.2, "poor": 0.6}.items()):
        table = pd.DataFrame({"Id": ids, "ECR": np.clip(0.3 + 0.4 * truth + noise * rng.normal(size=300), 0, 1)})
        paths.append(folder / f"{name}.csv")
        table.sample(frac=1, random_state=seed).to_csv(paths[-1], index=False)
    labels = folder / "labels.csv"
    pd.DataFrame({"Id": [*ids[:290], "elsewhere"], "Title": "a,b", "ECR": [*truth[:290], 0.5]}).to_csv(
        labels, index=False
    )
    return paths, labels
