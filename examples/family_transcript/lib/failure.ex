defmodule FamilyTranscript.Failure do
  @moduledoc false
  # Something the demo promises did not happen. The message is for the person who runs it.
  defexception [:message]
end
