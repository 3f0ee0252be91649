defmodule Kith.ChildVM do
  @moduledoc false
  # Runs code in a VM of its own, with Kith's modules and any native library.

  @library "kith_nif_test.so"

  @doc """
  Runs Elixir code and returns all it printed, to both streams, and its exit status.

  `:library` is the file to load as Kith's native library, or `nil` for none. Without it the VM
  gets the one of the tests. `:env` are environment variables, `:under` is a command that runs the one behind it, as a list.
  """
  def run(code, opts \\ []) do
    library = Keyword.get(opts, :library, installed_library())
    # The directory must be named after the application, which is how the VM finds its priv.
    root =
      Path.join([System.tmp_dir!(), "kith-child-#{System.unique_integer([:positive])}", "kith"])

    native = Path.join(root, "priv/native")
    File.mkdir_p!(native)

    try do
      File.cp_r!(Application.app_dir(:kith, "ebin"), Path.join(root, "ebin"))
      if library, do: File.cp!(library, Path.join(native, @library))

      elixir = [System.find_executable("elixir"), "-pa", Path.join(root, "ebin"), "-e", code]
      [command | arguments] = Keyword.get(opts, :under, []) ++ elixir

      System.cmd(command, arguments,
        stderr_to_stdout: true,
        env: Keyword.get(opts, :env, [])
      )
    after
      File.rm_rf!(Path.dirname(root))
    end
  end

  @doc "The native library that this VM has loaded."
  def installed_library, do: Application.app_dir(:kith, "priv/native/#{@library}")
end
