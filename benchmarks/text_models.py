"""Three simple text models on the captions of SnapUGC clips, and what `lmm-ecr ensemble` gains by combining them.

    python benchmarks/text_models.py --captions captions.csv [--output-dir text_models]

The table has the columns Id, Caption and EngagementLevel (0, 1 or 2; divided by 2 it is the label here). Each model
predicts every row by 5-fold cross-validation over folds that depend on the id alone, so that all rows can be scored:

- words: ridge regression on TF-IDF of words and word pairs;
- characters: support vector regression (linear) on TF-IDF of character 2- to 5-grams within words;
- boosting: gradient-boosted trees on 60 latent semantic dimensions, length and punctuation of the caption.

Needs scikit-learn. Writes labels.csv and one prediction file per model, then runs `lmm-ecr ensemble` with every method.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.pipeline import FunctionTransformer, make_pipeline, make_union
from sklearn.svm import LinearSVR

from lmm_ecr.ensemble_folds import fold_of, id_hashes
from lmm_ecr.ensemble_methods import METHODS
from lmm_ecr.predictions import write_predictions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, default=Path("text_models"))
    arguments = parser.parse_args()
    table = pd.read_csv(arguments.captions, dtype={"Id": str}, keep_default_na=False)
    labels = table["EngagementLevel"].to_numpy(np.float64) / 2
    folder = arguments.output_dir
    write_predictions(folder / "labels.csv", table["Id"], {"ECR": labels})
    files = []
    for name, model in models().items():
        scores = out_of_fold(model, table["Caption"].to_numpy(), labels, fold_of(id_hashes(table["Id"])))
        files.append(str(folder / "preds" / f"{name}.csv"))
        write_predictions(files[-1], table["Id"], {"ECR": np.clip(scores, 0, 1)})
    results = Table("method", "SROCC", "PLCC", "final", "gain", "95 % interval", "p")
    for method in METHODS:
        summary = run_ensemble(method, files, folder)
        ensemble, gain = summary["ensemble"], summary["gain_over_best"]
        results.add_row(
            method + (" (CV)" if summary["fit"] else ""),
            *(f"{ensemble[name]:.4f}" for name in ("srocc", "plcc", "final_score")),
            f"{gain['difference']:+.4f}",
            "{:+.4f} to {:+.4f}".format(*gain["ci95"]),
            f"{gain['p_value']:.3f}",
        )
    Console().print(f"{len(table):,} captions; gain: final score over the best member, {gain['best_member']}")
    Console().print(results)


def models() -> dict:
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=3, sublinear_tf=True)
    latent = make_pipeline(TfidfVectorizer(min_df=2, sublinear_tf=True), TruncatedSVD(60, random_state=0))
    shape = FunctionTransformer(caption_shape)
    return {
        "words": make_pipeline(words, Ridge(alpha=5.0)),
        "characters": make_pipeline(characters, LinearSVR(C=0.05, epsilon=0.1, max_iter=5000, random_state=0)),
        "boosting": make_pipeline(
            make_union(latent, shape), HistGradientBoostingRegressor(max_iter=150, learning_rate=0.05, random_state=0)
        ),
    }


def caption_shape(captions: np.ndarray) -> np.ndarray:
    return np.array([[len(text), text.count(" "), text.count("."), text.count('"')] for text in captions])


def out_of_fold(model, captions: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Prediction of every row by a model that was trained without the rows of its fold, float64 [rows]."""
    scores = np.empty(len(labels))
    for fold in np.unique(folds):
        held_out = folds == fold
        model.fit(captions[~held_out], labels[~held_out])
        scores[held_out] = model.predict(captions[held_out])
    return scores


def run_ensemble(method: str, files: list[str], folder: Path) -> dict:
    command = [sys.executable, "-m", "lmm_ecr.cli", "ensemble", *files, "--method", method, "--force"]
    command += ["--labels", str(folder / "labels.csv"), "--output", str(folder / f"{method}.csv")]
    command += ["--json", str(folder / f"{method}.json"), "--save", str(folder / f"{method}.recipe.json")]
    subprocess.run(command, check=True, stdout=None if method == "weighted" else subprocess.DEVNULL)
    return json.loads((folder / f"{method}.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
