"""Finds the initial weights and image scaling that reproduce Zeiler (2012), Table 2.

Trains all of its cells, as benchmarks.zeiler2012 does but with one seed, for each way
to initialise the network and to scale the images, and prints how far the test errors
are from the paper's. One choice is made for all cells.
"""

from typing import Any

from benchmarks import _mnist as mnist
from benchmarks import _report as report
from benchmarks import zeiler2012 as paper


def summary(results: list[dict[str, Any]]) -> str:
    """The root mean square of the differences from the paper, by both choices."""
    distances = {
        (row["weights"], row["images"]): f"{paper.from_the_paper(row['cells']):.2f}"
        for row in results
    }
    scalings = list(dict.fromkeys(scaling for _, scaling in distances))
    return report.table(
        ["weights", *(f"images: {scaling}" for scaling in scalings)],
        [
            [weights, *(distances[weights, scaling] for scaling in scalings)]
            for weights in dict.fromkeys(weights for weights, _ in distances)
        ],
    )


def main(arguments: list[str] | None = None) -> None:
    """Trains under all choices, prints the table and writes the result."""
    parser = report.parser("zeiler2012_choices", __doc__, "about 25 minutes")
    mnist.add_option(parser)
    parser.add_argument("--epochs", type=int, default=6, help="of each run")
    options = parser.parse_args(arguments)

    data = mnist.load(options.data)
    choices = [(w, i) for w in paper.INITIALISERS for i in paper.SCALINGS]
    cells = len(choices) * len(paper.METHODS[paper.ADADELTA].cells)
    batches = options.epochs * (len(data.train_images) // paper.BATCH)
    results = []
    with paper.progress_bar(batches * cells) as progress:
        for weights, images in choices:
            progress.set_description(f"{weights}; {images}")
            scaled = paper.scaled(data, images)
            trained = paper.train(
                paper.ADADELTA, weights, scaled, 1, options.epochs, progress
            )
            results.append({"weights": weights, "images": images, "cells": trained})
    print(summary(results))
    print(report.describe())
    print(f"written: {report.write(options.out, 'zeiler2012_choices', results)}")


if __name__ == "__main__":
    main()
