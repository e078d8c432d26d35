"""Recipes: programs that ``descant run`` runs, with a config of their own."""

from descant.recipes.config import InputConfig
from descant.recipes.context import RecipeContext
from descant.recipes.parameters import Dataset, Grader, Model
from descant.recipes.recipe import recipe_main

__all__ = ["Dataset", "Grader", "InputConfig", "Model", "RecipeContext", "recipe_main"]
