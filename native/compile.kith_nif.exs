defmodule Mix.Tasks.Compile.KithNif do
  # Builds the NIF with cargo and puts it in priv/native.
  #
  # Cargo decides what is stale; this task only asks it on every `mix compile`, then copies the
  # library when its bytes changed.
  @moduledoc false
  use Mix.Task.Compiler

  @package "kith_nif"
  @recursive true

  @impl true
  def run(_args) do
    cond do
      System.get_env("KITH_SKIP_CARGO") in ["1", "true"] -> :noop
      cargo = System.find_executable("cargo") -> build(cargo)
      true -> Mix.raise("cargo is needed to build Kith's native library; see https://rustup.rs")
    end
  end

  @impl true
  def manifests, do: [manifest()]

  @impl true
  def clean do
    File.rm(installed())
    File.rm(manifest())
  end

  defp build(cargo) do
    if not File.exists?(built()) do
      Mix.shell().info("Building Kith's native library with cargo (once, about a minute or two)…")
    end

    args =
      ["build", "--locked", "--quiet", "--package", @package] ++
        ["--manifest-path", Path.join(root(), "Cargo.toml"), "--target-dir", target_dir()] ++
        flags(Mix.env())

    case System.cmd(cargo, args, into: IO.stream(), stderr_to_stdout: true) do
      {_, 0} -> install()
      {_, status} -> {:error, [diagnostic(status)]}
    end
  end

  # A profile of its own, because cargo would write both builds to the same file otherwise.
  defp flags(:test), do: ["--profile", "inject", "--features", "panic_injection"]
  defp flags(_env), do: ["--release"]

  defp profile(:test), do: "inject"
  defp profile(_env), do: "release"

  # Kith.Native chooses between the two names in the same way. A dependency is compiled in :prod,
  # so a user's own tests never see the library that panics on request.
  defp library(:test), do: "#{@package}_test.so"
  defp library(_env), do: "#{@package}.so"

  defp install do
    library = File.read!(built())

    if File.read(installed()) == {:ok, library} do
      :noop
    else
      replace(installed(), library)
      File.mkdir_p!(Path.dirname(manifest()))
      File.write!(manifest(), "")
      # On a fresh clone priv did not exist when Mix linked it into _build.
      Mix.Project.build_structure()
      :ok
    end
  end

  # A running VM may have the old library mapped: replace it by a rename, never write over it.
  defp replace(path, bytes) do
    File.mkdir_p!(Path.dirname(path))
    File.write!(path <> ".tmp", bytes)
    File.rename!(path <> ".tmp", path)
    Mix.shell().info("Installed #{Path.relative_to_cwd(path)}")
  end

  defp diagnostic(status) do
    %Mix.Task.Compiler.Diagnostic{
      compiler_name: "cargo",
      file: Path.join(root(), "Cargo.toml"),
      message: "cargo build exited with status #{status}",
      position: nil,
      severity: :error
    }
  end

  # project_file/0, not File.cwd!/0: as a dependency we are compiled from elsewhere.
  defp root, do: Path.dirname(Mix.Project.project_file())
  defp built, do: Path.join([target_dir(), profile(Mix.env()), "lib#{@package}.so"])
  defp installed, do: Path.join([root(), "priv", "native", library(Mix.env())])
  defp manifest, do: Path.join(Mix.Project.manifest_path(), "compile.kith_nif")
  defp target_dir, do: System.get_env("CARGO_TARGET_DIR") || Path.join(root(), "target")
end
