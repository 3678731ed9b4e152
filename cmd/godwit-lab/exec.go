package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/godwit-vmm/godwit/guest/agent"
	"github.com/godwit-vmm/godwit/internal/lab"
)

func newExec() *cobra.Command {
	c := &cobra.Command{
		Use:   "exec HOST -- COMMAND...",
		Short: "Run a command in a host",
		Long: `Run a command in a host of a lab that is up: hN, or LAB/hN for a lab with a
name. Input, output and exit status are those of the command.`,
		Example: `  godwit-lab exec h1 -- dmesg
  godwit-lab exec h1                        a shell
  godwit-lab exec big/h1 -- godwit doctor`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			client, err := connect(args[0])
			if err != nil {
				return err
			}
			defer client.Close()
			command := args[1:]
			if len(command) > 0 && command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 {
				command = []string{"sh"}
			}
			return attach(client, command)
		},
	}
	// Flags behind HOST are the command's.
	c.Flags().SetInterspersed(false)
	return c
}

func connect(name string) (*agent.Client, error) {
	host, err := lab.Find(name)
	if err != nil {
		return nil, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return lab.Connect(ctx, host)
}

func newCp() *cobra.Command {
	return &cobra.Command{
		Use:   "cp FROM TO",
		Short: "Copy a file into or out of a host",
		Long: `Copy a file. One of FROM and TO is HOST:PATH, the other a path on this machine.
A TO that is a folder, here, or that ends in a slash, gets the file under its
own name.`,
		Example: `  godwit-lab cp bin/godwit h1:/usr/local/bin/
  godwit-lab cp h1:/var/log/guest.log .`,
		Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error { return cp(args[0], args[1]) },
	}
}

func cp(from, to string) error {
	fromHost, fromPath, out := strings.Cut(from, ":")
	toHost, toPath, in := strings.Cut(to, ":")
	switch {
	case in == out:
		return errors.New("one of FROM and TO must be HOST:PATH, and the other a path here")
	case in && strings.HasSuffix(toPath, "/"):
		toPath = path.Join(toPath, filepath.Base(from))
	case out:
		if info, err := os.Stat(to); err == nil && info.IsDir() {
			to = filepath.Join(to, path.Base(fromPath))
		}
	}
	host := fromHost
	if in {
		host = toHost
	}
	client, err := connect(host)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if in {
		return lab.PutFile(ctx, client, from, toPath)
	}
	return lab.GetFile(ctx, client, fromPath, to)
}
