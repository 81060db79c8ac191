"""Training of finite networks on real data: recipes, resumable runs, checkpoints and curves."""

from nngp_dag.nas.spaces.any_cell import read_cell
from nngp_dag.training.advice import stable_learning_rate
from nngp_dag.training.cell_recipe import CellRecipe
from nngp_dag.training.cells import TrainedCell, train_cell
from nngp_dag.training.evaluation import Evaluation, evaluate
from nngp_dag.training.history import History
from nngp_dag.training.networks import summary_of
from nngp_dag.training.recipe import Recipe
from nngp_dag.training.run import Trained, train

__all__ = [
    "CellRecipe",
    "Evaluation",
    "History",
    "Recipe",
    "Trained",
    "TrainedCell",
    "evaluate",
    "read_cell",
    "stable_learning_rate",
    "summary_of",
    "train",
    "train_cell",
]
