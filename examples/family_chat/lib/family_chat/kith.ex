defmodule FamilyChat.Kith do
  @moduledoc "The encrypted messages of the application."

  use Kith, otp_app: :family_chat
end
