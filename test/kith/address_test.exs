defmodule Kith.AddressTest do
  use ExUnit.Case, async: true
  doctest Kith.Address
end
