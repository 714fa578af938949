"""Trying the theory: propositions and measurements on one model, their page, and the document made of both."""
