# Reproduce what papers claim: `snakemake` runs everything at scale `smoke`,
# `snakemake --config scale=gpu` at another one; `snakemake figures --config records=FOLDER`
# redraws the figures of a folder of records without training.
from snakemake.utils import min_version

min_version("9.10")


include: "workflows/common.smk"


onerror:
    if SETTINGS.records is None:
        print(f"records of what is done: harness collect --so-far --scale {SCALE}", file=sys.stderr)


rule all:
    input:
        f"{RECORDS}/tables",
        f"{RECORDS}/figures",
        f"{RECORDS}/claims.csv",
        f"{RECORDS}/report.html",


include: "workflows/prepare.smk"
include: "workflows/train.smk"
include: "workflows/compute.smk"
include: "workflows/report.smk"
