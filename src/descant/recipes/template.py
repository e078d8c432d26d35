"""Supervised fine-tuning of a model on a file, with evaluation that runs along.

descant run RECIPE_NAME.py --config RECIPE_NAME.toml
"""

from typing import Literal

from pydantic import Field

from descant import (
    SFT,
    BestModelCallback,
    GenerateSamplesCallback,
    GraderEvalCallback,
    ValidationLossCallback,
    get_prod_logger,
)
from descant.recipes import Dataset, Grader, InputConfig, Model, RecipeContext, recipe_main


class Config(InputConfig):
    """What can be set in the config file, or with --set KEY=VALUE."""

    model: Model = Field(description="a model directory or a hub id")
    train: Dataset = Field(description="threads to train on: .jsonl, .json or .parquet")
    validation: Dataset = Field(description="threads to validate on, held out from training")
    grader: Grader = Field(Grader("exact_match"), description="what grades the answers to the validation prompts")
    lr: float = Field(1e-5, gt=0, description="the peak learning rate")
    epochs: float = Field(1.0, gt=0, description="passes over the training threads")
    samples_per_batch: int = Field(32, ge=1, description="threads per step")
    max_batch_size: int = Field(4096, ge=1, description="tokens that go through the model at once; bounds memory")
    max_length: int | None = Field(
        None, ge=1, description="tokens of a thread, at most; by default what the model takes"
    )
    over_long: Literal["error", "skip", "truncate"] = Field("error", description="what follows when threads have more")
    max_gen_len: int = Field(64, ge=1, description="tokens of an answer, at most")
    frequency: float = Field(0.1, gt=0, le=1, description="the share of the run between two evaluations")
    trackers: list[Literal["trackio", "wandb", "mlflow", "tensorboard"]] = Field(
        [], description="where curves and tables are sent; the run log has them in any case"
    )
    seed: int = Field(0, ge=0, description="everything random is made from it")


@recipe_main
async def main(ctx: RecipeContext, config: Config) -> None:
    """Fine-tune a model; the best one by validation loss is in checkpoints/best of the run directory."""
    logger = get_prod_logger(ctx, config.trackers)
    train, validation = await config.train.load(), await config.validation.load()
    model = await config.model.spawn_train("policy", max_batch_size=config.max_batch_size)
    result = await SFT(
        dataset=train,
        model=model,
        logger=logger,
        callbacks=[
            GraderEvalCallback(
                validation, model, await config.grader.load(), config.frequency, max_gen_len=config.max_gen_len
            ),
            ValidationLossCallback(validation, model, config.frequency),
            GenerateSamplesCallback(validation[:8], model, config.frequency, max_gen_len=config.max_gen_len),
            BestModelCallback(model, "validation/loss", "min"),
        ],
        lr=config.lr,
        epochs=config.epochs,
        samples_per_batch=config.samples_per_batch,
        max_length=config.max_length,
        over_long=config.over_long,
        seed=ctx.seed,
        run_dir=ctx.run_dir,
    ).run()
    await model.save(result.run_dir / "model")
    print(f"the trained model is in {result.run_dir / 'model'}; look at the run: descant show {result.run_dir}")
