"""Write a simulated project of pose files: ``python benchmarks/scale.py FOLDER [--recordings 20] [--frames 50000]``.

Then time ``python case_studies/syllables.py fit FOLDER/*.csv --fps 30 --out OUT`` and ``apply``; the peak memory of a
process is what ``/usr/bin/time -v`` or ``resource.getrusage`` calls its maximum resident set size.
"""

import argparse
from pathlib import Path

from ppgen.pose.simulate import simulate_mice, write_deeplabcut_csv


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recordings", type=int, default=20)
    parser.add_argument("--frames", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    recordings, _ = simulate_mice(
        recordings=options.recordings, frames=options.frames, keypoints=10, random_seed=options.seed
    )
    for recording in recordings:
        write_deeplabcut_csv(recording, options.folder / f"{recording.name}.csv")


if __name__ == "__main__":
    main()
