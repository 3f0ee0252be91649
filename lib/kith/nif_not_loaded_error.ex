defmodule Kith.NifNotLoadedError do
  @moduledoc """
  Raised when Kith's native library is called but could not be loaded.

  The message repeats what the loader said. The usual cause is a project compiled with
  `KITH_SKIP_CARGO=1`, or a release built for another machine.
  """

  defexception [:reason]

  @type t :: %__MODULE__{reason: {atom, charlist} | nil}

  @impl true
  def message(%__MODULE__{reason: {:load, text}}) do
    "Kith's native library refused to be loaded: it must be built with panic = \"unwind\", " <>
      "or a panic in it would end the whole VM (#{text})"
  end

  def message(%__MODULE__{reason: {kind, text}}) do
    "Kith's native library is not loaded: #{text} (#{kind}). Run `mix compile` with cargo installed"
  end

  def message(%__MODULE__{reason: nil}) do
    "Kith's native library is not loaded. Run `mix compile` with cargo installed"
  end
end
