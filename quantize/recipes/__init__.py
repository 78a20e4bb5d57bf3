"""Recipes: which scheme each layer gets, as data. The shipped ones are in this folder."""
