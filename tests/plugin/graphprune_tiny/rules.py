"""The rule of tiny::scale: an activation and one number a channel."""

from graphprune.ops.rules import rule

rule("tiny.scale.default", axes="n c ~, c -> n c ~")
