"""Why a search ends: whether its last point is a minimum, and what that means."""

REASONS = {
    "step": (True, "the last step is below tol"),
    "gradient": (True, "the residual is orthogonal to its derivatives, to tol"),
    "exact": (True, "the residual is zero to rounding"),
    "rounding": (True, "noise floor: the objective has no decrease left that rounding does not hide"),
    "bounds": (True, "every parameter is held by a bound"),
    "flat": (False, "undetermined parameter: the residual does not depend on alpha here; start elsewhere"),
    "derivative": (False, "the derivative of the basis is not finite here"),
    "not finite": (False, "the basis is not finite at any trial point near the last one"),
    "dependent": (False, "dependent columns: near here columns of the basis are the same to rounding; start elsewhere"),
    "undetermined": (False, "undetermined parameter: the search came to where one has no influence; start elsewhere"),
    "noise": (False, "noise floor: rounding of the basis changes the objective by more than the steps that are left"),
    "stalled": (False, "no step brings the decrease that the derivative of the basis predicts"),
    "max_steps": (False, "the steps ran out"),
    "stopped": (False, "the callback asked for it"),
}
