#!/bin/sh
# Makes a PostgreSQL that differs from the one of PG_CONFIG by one library only.
#
#   link_install.sh PG_CONFIG ROOT
#
# Under ROOT its programs are copies, because they look for everything else relative to
# where they really are; libraries and shared files are links.  The caller adds residency.so.
set -e
pg_config=$1 root=$2
bin=$("$pg_config" --bindir)
lib=$("$pg_config" --pkglibdir)
share=$("$pg_config" --sharedir)

rm -rf "${root:?}$bin" "$root$lib" "$root$share"
mkdir -p "$root$bin" "$root$lib" "$(dirname "$root$share")"
for program in postgres initdb pg_ctl pg_config psql pg_isready pg_basebackup; do
	cp -L "$bin/$program" "$root$bin/"
done
ln -s "$share" "$root$share"
for file in "$lib"/*; do
	[ "$(basename "$file")" = residency.so ] || ln -s "$file" "$root$lib/"
done
