defmodule Kith.Monitor.Alert do
  @moduledoc """
  What a rule of `Kith.Monitor` has to say.

    * `:instance` - the name of the instance
    * `:rule` - the name of the rule
    * `:severity` - `:critical` or `:warning`
    * `:state` - `:raised` or, to `:on_alert` when it is over, `:cleared`
    * `:message` - a sentence with the figures. There is never a user in it, but for what a rule of your own says
    * `:since` - when it was raised
  """

  @enforce_keys [:instance, :rule, :severity, :state, :message, :since]
  defstruct [:instance, :rule, :severity, :state, :message, :since]

  @type severity :: :critical | :warning

  @type t :: %__MODULE__{
          instance: Kith.name(),
          rule: atom,
          severity: severity,
          state: :raised | :cleared,
          message: String.t(),
          since: DateTime.t()
        }
end
