"""Finished cells of `nft-ext reproduce`, made up, and the report about them."""

from nft_ext.reproduce.report import write_report


def cell(
    variant="ovf", sigma=0.3, seed=0, chips=(0.9, 0.8), ekl=0.02, clean=0.95, panel="vgg8-mnist", sigmas=None, **config
):
    """One finished cell; `sigmas` make it one network measured at several (vanilla)."""
    points = [
        {"sigma": at, "accuracy": list(chips), "ekl": ekl, "nll": 0.3, "ece": 0.05, "images": 100}
        for at in sigmas or [sigma]
    ]
    model, _, dataset = panel.partition("-")
    settings = {
        "panel": panel,
        "variant": variant,
        "sigma": None if sigmas else sigma,
        "sigmas": list(sigmas or [sigma]),
        "seed": seed,
        "model": model,
        "dataset": dataset,
        "width": 1.0,
        "epochs": 200,
        "batch_size": 128,
        "optimizer": "adam",
        "lr": 1e-3,
        "train_images": None,
        "test_images": None,
        "runs": len(chips),
        "validation": 0.1,
        "pretrained": 0,
    }
    return {
        "key": f"{panel}-{variant}-{sigma}-{seed}",
        "config": settings | config,
        "points": points,
        "clean": clean,
        "training": {"best": {"epoch": 3}, "epochs_done": 4, "seconds": 30.0},
        "versions": {"nft_ext": "0.1.0", "machine": "x86_64"},
        "seconds": 60.0,
    }


def line(variant, accuracies, **options):
    """One cell per seed, two chips per cell, one point below and above the seed's accuracy."""
    return [cell(variant, seed=seed, chips=(a - 0.01, a + 0.01), **options) for seed, a in enumerate(accuracies)]


def report(found, out, experiment="figure3", **settings):
    return write_report(
        experiment,
        found,
        out,
        "nft-ext reproduce figure3",
        {"preset": "quick", "cells": len(found), "finished": len(found)} | settings,
    )
