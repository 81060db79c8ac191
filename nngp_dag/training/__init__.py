"""Training of finite networks on real data: recipes, runs that resume, checkpoints and curves."""

from nngp_dag.training.advice import stable_learning_rate
from nngp_dag.training.evaluation import Evaluation, evaluate
from nngp_dag.training.history import History
from nngp_dag.training.recipe import Recipe
from nngp_dag.training.run import Trained, train

__all__ = ["Evaluation", "History", "Recipe", "Trained", "evaluate", "stable_learning_rate", "train"]
